//! The kernel's description of its types, as far as programs depend on it: how many parameters a function has, where a
//! structure has a field. Documentation/bpf/btf.rst.

use std::fs;
use std::path::Path;

/// Where the kernel shows its types.
const FOLDER: &str = "/sys/kernel/btf";

const MAGIC: u16 = 0xeb9f;

// Kinds of types.
const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const ENUM64: u32 = 19;

/// Types of the kernel, or of one of its modules, which continue those of the kernel.
#[derive(Debug)]
pub(super) struct Btf {
    base: Option<Box<Btf>>,
    bytes: Vec<u8>,
    /// Where each type begins in `bytes`.
    types: Vec<usize>,
    /// Where strings begin and end in `bytes`.
    strings: (usize, usize),
}

/// The fixed part of a type.
#[derive(Clone, Copy, Debug)]
struct Type {
    name: u32,
    info: u32,
    /// A size, or the number of another type.
    other: u32,
    /// Where what follows begins, in the bytes of the table that has it.
    tail: usize,
}

impl Type {
    const fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }

    const fn count(self) -> usize {
        (self.info & 0xffff) as usize
    }

    /// Whether offsets of members share their word with the size of a bit field.
    const fn has_bit_fields(self) -> bool {
        self.info >> 31 == 1
    }
}

impl Btf {
    /// The types of KVM, be it a part of the kernel or a module; `None` if the kernel shows none.
    pub(super) fn kvm() -> Option<Self> {
        let folder = Path::new(FOLDER);
        let kernel = Self::parse(fs::read(folder.join("vmlinux")).ok()?, None)?;
        match fs::read(folder.join("kvm")) {
            Ok(module) => Self::parse(module, Some(kernel)),
            Err(_) => Some(kernel),
        }
    }

    /// Takes a table apart; `None` if it is none.
    fn parse(bytes: Vec<u8>, base: Option<Self>) -> Option<Self> {
        if u16::from_le_bytes(*bytes.first_chunk()?) != MAGIC {
            return None;
        }
        let word = |at| Some(read_u32(&bytes, at)? as usize);
        let header = word(4)?;
        let types_at = header.checked_add(word(8)?)?;
        let types_end = types_at.checked_add(word(12)?)?;
        let strings_at = header.checked_add(word(16)?)?;
        let strings_end = strings_at.checked_add(word(20)?)?;
        if types_end > bytes.len() || strings_end > bytes.len() {
            return None;
        }
        let mut types = Vec::new();
        let mut at = types_at;
        while at < types_end {
            types.push(at);
            let found = read_type(&bytes, at)?;
            at = found.tail.checked_add(tail_bytes(found)?)?;
        }
        Some(Self {
            base: base.map(Box::new),
            bytes,
            types,
            strings: (strings_at, strings_end),
        })
    }

    /// How many parameters a tracepoint passes, without the one that is for the tracing itself.
    pub(super) fn tracepoint_parameters(&self, name: &str) -> Option<u32> {
        let (table, typedef) = self.find(&format!("btf_trace_{name}"), TYPEDEF)?;
        let pointer = table.type_of(typedef.other).filter(|it| it.kind() == PTR)?;
        let prototype = table.type_of(pointer.other).filter(|it| it.kind() == FUNC_PROTO)?;
        u32::try_from(prototype.count()).ok()?.checked_sub(1)
    }

    /// How many parameters a function has.
    pub(super) fn function_parameters(&self, name: &str) -> Option<u32> {
        let (table, function) = self.find(name, FUNC)?;
        let prototype = table.type_of(function.other).filter(|it| it.kind() == FUNC_PROTO)?;
        u32::try_from(prototype.count()).ok()
    }

    /// Where a structure has a field, in bytes from its beginning. Fields of structures inside are not looked for.
    pub(super) fn field_offset(&self, structure: &str, field: &str) -> Option<u64> {
        let (table, found) = self.find(structure, STRUCT)?;
        (0..found.count()).find_map(|index| {
            let member = found.tail + index * 12;
            let name = read_u32(&table.bytes, member)?;
            if self.string(name)? != field.as_bytes() {
                return None;
            }
            let bits = read_u32(&table.bytes, member + 8)?;
            let bits = if found.has_bit_fields() {
                bits & 0x00ff_ffff
            } else {
                bits
            };
            Some(u64::from(bits / 8))
        })
    }

    /// The first type of this name and kind, and the table that has it; a module's own before the kernel's.
    fn find(&self, name: &str, kind: u32) -> Option<(&Self, Type)> {
        let own = self.types.iter().find_map(|at| {
            let found = read_type(&self.bytes, *at)?;
            (found.kind() == kind && self.string(found.name)? == name.as_bytes()).then_some(found)
        });
        match own {
            Some(found) => Some((self, found)),
            None => self.base.as_ref()?.find(name, kind),
        }
    }

    /// A type by its number; number 0 is `void`, which is none.
    fn type_of(&self, number: u32) -> Option<Type> {
        let before = self.base.as_ref().map_or(0, |base| base.types.len());
        let index = (number as usize).checked_sub(1)?;
        match index.checked_sub(before) {
            Some(own) => read_type(&self.bytes, *self.types.get(own)?),
            None => self.base.as_ref()?.type_of(number),
        }
    }

    fn string(&self, offset: u32) -> Option<&[u8]> {
        let before = self.base.as_ref().map_or(0, |base| base.strings.1 - base.strings.0);
        let Some(own) = (offset as usize).checked_sub(before) else {
            return self.base.as_ref()?.string(offset);
        };
        let text = self.bytes.get(self.strings.0 + own..self.strings.1)?;
        text.split(|byte| *byte == 0).next()
    }
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn read_type(bytes: &[u8], at: usize) -> Option<Type> {
    Some(Type {
        name: read_u32(bytes, at)?,
        info: read_u32(bytes, at + 4)?,
        other: read_u32(bytes, at + 8)?,
        tail: at + 12,
    })
}

/// Bytes that follow the fixed part of a type; `None` for a kind that is not known.
const fn tail_bytes(found: Type) -> Option<usize> {
    Some(match found.kind() {
        INT | VAR | DECL_TAG => 4,
        ARRAY => 12,
        STRUCT | UNION | DATASEC | ENUM64 => found.count() * 12,
        ENUM | FUNC_PROTO => found.count() * 8,
        1..=19 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Makes tables as the kernel does.
    #[derive(Default)]
    struct Builder {
        types: Vec<u8>,
        strings: Vec<u8>,
        strings_before: u32,
    }

    impl Builder {
        fn new() -> Self {
            Self {
                strings: vec![0],
                ..Self::default()
            }
        }

        /// A module's table, on top of another one.
        fn on(base: &Btf) -> Self {
            Self {
                strings_before: u32::try_from(base.strings.1 - base.strings.0).unwrap(),
                ..Self::default()
            }
        }

        fn name(&mut self, name: &str) -> u32 {
            let at = self.strings_before + u32::try_from(self.strings.len()).unwrap();
            self.strings.extend(name.as_bytes());
            self.strings.push(0);
            at
        }

        fn add(&mut self, name: u32, kind: u32, count: u32, other: u32, tail: &[u32]) {
            for word in [name, kind << 24 | count, other].iter().chain(tail) {
                self.types.extend(word.to_le_bytes());
            }
        }

        fn bytes(&self) -> Vec<u8> {
            let lengths = (self.types.len() as u32, self.strings.len() as u32);
            let mut bytes = MAGIC.to_le_bytes().to_vec();
            bytes.extend([1, 0]);
            for word in [24, 0, lengths.0, lengths.0, lengths.1] {
                bytes.extend(u32::to_le_bytes(word));
            }
            bytes.extend(&self.types);
            bytes.extend(&self.strings);
            bytes
        }
    }

    /// 1: an integer, 2: a prototype of three parameters, 3: a pointer to it, 4: a tracepoint, 5: a structure of two fields.
    fn kernel() -> Btf {
        let mut builder = Builder::new();
        let (int, trace, shape) = (
            builder.name("int"),
            builder.name("btf_trace_old"),
            builder.name("shape"),
        );
        let (first, second) = (builder.name("first"), builder.name("second"));
        builder.add(int, INT, 0, 4, &[32]);
        builder.add(0, FUNC_PROTO, 3, 0, &[0, 1, 0, 1, 0, 1]);
        builder.add(0, PTR, 0, 2, &[]);
        builder.add(trace, TYPEDEF, 0, 3, &[]);
        builder.add(shape, STRUCT, 2, 8, &[first, 1, 0, second, 1, 32]);
        Btf::parse(builder.bytes(), None).unwrap()
    }

    #[test]
    fn parameters_and_fields_are_found() {
        let btf = kernel();
        assert_eq!(btf.types.len(), 5);
        assert_eq!(btf.tracepoint_parameters("old"), Some(2));
        assert_eq!(btf.tracepoint_parameters("new"), None);
        assert_eq!(btf.field_offset("shape", "first"), Some(0));
        assert_eq!(btf.field_offset("shape", "second"), Some(4));
        assert_eq!(btf.field_offset("shape", "third"), None);
        assert_eq!(btf.field_offset("int", "first"), None);
    }

    #[test]
    fn a_module_continues_the_kernel() {
        let base = kernel();
        let mut builder = Builder::on(&base);
        let (function, trace) = (builder.name("work"), builder.name("btf_trace_new"));
        // 6: of the kernel's types, 7: a function, 8: a pointer, 9: a tracepoint.
        builder.add(0, FUNC_PROTO, 4, 0, &[0, 1, 0, 1, 0, 1, 0, 1]);
        builder.add(function, FUNC, 0, 6, &[]);
        builder.add(0, PTR, 0, 6, &[]);
        builder.add(trace, TYPEDEF, 0, 8, &[]);
        let btf = Btf::parse(builder.bytes(), Some(base)).unwrap();
        assert_eq!(btf.function_parameters("work"), Some(4));
        assert_eq!(btf.tracepoint_parameters("new"), Some(3));
        assert_eq!(btf.tracepoint_parameters("old"), Some(2));
        assert_eq!(btf.field_offset("shape", "second"), Some(4));
    }

    #[test]
    fn this_kernel_s_own_table_is_understood() {
        let Ok(bytes) = fs::read(Path::new(FOLDER).join("vmlinux")) else {
            return;
        };
        let btf = Btf::parse(bytes, None).expect("a table");
        assert!(btf.types.len() > 1000);
        assert_eq!(btf.field_offset("list_head", "prev"), Some(8));
        assert_eq!(btf.function_parameters("do_exit"), Some(1));
        assert_eq!(btf.tracepoint_parameters("sys_enter"), Some(2));
    }

    proptest! {
        #[test]
        fn damage_is_no_panic(at in 0_usize..400, value: u8, cut in 0_usize..400) {
            let mut bytes = {
                let btf = kernel();
                btf.bytes
            };
            bytes.truncate(cut.max(1));
            let len = bytes.len();
            bytes[at % len] = value;
            if let Some(btf) = Btf::parse(bytes, None) {
                let _ = btf.tracepoint_parameters("old");
                let _ = btf.field_offset("shape", "second");
                let _ = btf.function_parameters("work");
            }
        }
    }
}
