//! A C compiler at work on files that are made here.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use crate::load::{Fault, Load};
use crate::runs::Run;

/// How many files there are.
const FILES: u64 = 32;
/// Functions of a file: enough for a compiler to take longer than to start, and few enough for a second to see one compiled.
const FUNCTIONS: u64 = 6;

/// The compiler proper of gcc, over and over.
#[derive(Default)]
pub(crate) struct Compile {
    run: Run,
    compiled: u64,
    /// What came out of each file.
    results: BTreeMap<u64, blake3::Hash>,
}

impl Compile {
    pub(crate) fn new() -> anyhow::Result<Self> {
        for file in 0..FILES {
            fs::write(source_path(file), source(file))?;
        }
        Ok(Self::default())
    }

    fn file(&self) -> u64 {
        self.compiled % FILES
    }

    /// Looks at what came out of a file: the same as before, if it was compiled before.
    fn look_at(&mut self, file: u64) -> Result<(), Fault> {
        let found = blake3::hash(&fs::read(result_path(file))?);
        let expected = *self.results.entry(file).or_insert(found);
        match found == expected {
            true => Ok(()),
            false => Err(Fault::Corrupt(format!(
                "file={file} is compiled to something else than before"
            ))),
        }
    }
}

impl Load for Compile {
    fn work(&mut self, until: Instant) -> Result<(), Fault> {
        while Instant::now() < until {
            let file = self.file();
            if self.run.is_over() {
                let mut command = Command::new("cc1");
                command
                    .args(["-quiet", "-fpreprocessed", "-O2"])
                    .arg(source_path(file))
                    .arg("-o")
                    .arg(result_path(file));
                self.run.start(&mut command)?;
            }
            if let Some((status, said)) = self.run.wait(until)? {
                if !status.success() {
                    return Err(Fault::Corrupt(format!(
                        "file={file} does not compile any more ({status}): {said}"
                    )));
                }
                self.look_at(file)?;
                self.compiled += 1;
            }
        }
        Ok(())
    }

    fn steps(&self) -> u64 {
        self.compiled
    }

    fn check(&mut self) -> Result<u64, Fault> {
        let files: Vec<u64> = self.results.keys().copied().collect();
        // The one that is being compiled is not as it was, and not yet as it will be.
        let busy = (!self.run.is_over()).then(|| self.file());
        let mut looked_at = 0;
        for file in files.into_iter().filter(|file| Some(*file) != busy) {
            self.look_at(file)?;
            looked_at += 1;
        }
        for file in 0..FILES {
            if fs::read_to_string(source_path(file))? != source(file) {
                return Err(Fault::Corrupt(format!(
                    "file={file}: the source is not as it was written"
                )));
            }
        }
        Ok(looked_at + FILES)
    }
}

fn source_path(file: u64) -> PathBuf {
    format!("/tmp/unit-{file}.i").into()
}

fn result_path(file: u64) -> PathBuf {
    format!("/tmp/unit-{file}.s").into()
}

/// C that is different in every file and gives an optimiser something to do.
fn source(file: u64) -> String {
    let mut source = String::new();
    for function in 0..FUNCTIONS {
        let (a, b) = (file * 31 + function * 7 + 3, file * 17 + function + 5);
        let calls = match function {
            0 => "x".to_owned(),
            _ => format!("f{}(a, n / 2, x)", function - 1),
        };
        let _ = write!(
            source,
            "static unsigned f{function}(unsigned *a, unsigned n, unsigned x) {{
    unsigned i, j, sum = {a};
    for (i = 0; i < n; i++)
        for (j = i; j < n; j += {b})
            switch ((a[j] + i) % 5) {{
            case 0: sum += a[j] * {a}; break;
            case 1: a[i] ^= sum << {shift}; break;
            case 2: if (sum > {b}) a[j] -= i; else sum = sum / {a} + x; break;
            case 3: a[n - i - 1] = sum; sum = sum * sum + {b}; break;
            default: x += a[j] & 0x{a:x}f;
            }}
    return sum + {calls};
}}
",
            shift = file % 7 + 1,
        );
    }
    let _ = writeln!(
        source,
        "unsigned unit{file}(unsigned *a, unsigned n) {{ return f{}(a, n, n); }}",
        FUNCTIONS - 1
    );
    source
}
