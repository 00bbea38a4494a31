//! Files with the order in which a guest's pages were needed: written by one migration, pushed by in the next.
//!
//! A text of one page number, in decimal, a line: the first page that the guest had to wait for, then the next. Empty lines and
//! what follows a `#` mean nothing. Instead of such a text a trace file may be read ([`crate::trace`]): then the order is that of the
//! first write to each page.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use dunlin_core::pageset::Run;
use dunlin_core::tracefile::Item;
use dunlin_core::units::{Gfn, Pages};

use crate::trace::{FileFormat, TraceError, TraceReader};

/// What goes before the file in a strategy.
const VALUE: &str = "push=recorded";

/// Longest line, comments included.
const LINE_MAX: u64 = 1024;
/// Most pages of an order: those of 256 GiB.
pub(crate) const PAGES_MAX: usize = 64 << 20;

/// Why an order cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PushOrderError {
    /// The system's reason.
    #[error("cannot {what} the order of pages in {}", path.display())]
    Io {
        /// `read` or `write`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something else than a page number.
    #[error("{}, line {line}: {found:?} is no page number; write one in decimal a line", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What is there, or its beginning.
        found: String,
    },
    /// Nothing to push by.
    #[error("{} has no page numbers: --record-order writes such a file when a guest had to wait in post-copy", .0.display())]
    Empty(PathBuf),
    /// A trace file that cannot be read, or a part of it.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A trace of a guest with more pages than anybody pushes by.
    #[error("{} is of a guest with {} pages; up to {PAGES_MAX} of up to 64 times as many can be pushed in order", path.display(), pages.0)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What the guest has.
        pages: Pages,
    },
    /// More than anybody pushes by.
    #[error("{} has more than {PAGES_MAX} pages: shorten it, what is not in it is pushed all the same", .0.display())]
    TooLong(PathBuf),
}

/// Takes the file out of `push=recorded:FILE` in a strategy, which is then one for the core. A file name cannot have a comma.
pub fn split_file(strategy: &str) -> (String, Option<PathBuf>) {
    let mut file = None;
    let items: Vec<&str> = strategy
        .split(',')
        .map(
            |item| match item.strip_prefix(VALUE).and_then(|rest| rest.strip_prefix(':')) {
                Some(path) => {
                    file = Some(PathBuf::from(path));
                    VALUE
                }
                None => item,
            },
        )
        .collect();
    (items.join(","), file)
}

/// Reads an order, or takes it from a trace.
///
/// # Errors
/// [`PushOrderError`].
pub fn read(path: &Path) -> Result<Vec<Gfn>, PushOrderError> {
    let error = |source| PushOrderError::Io {
        what: "read",
        path: path.into(),
        source,
    };
    let mut file = BufReader::new(File::open(path).map_err(error)?);
    if FileFormat::from_beginning(file.fill_buf().map_err(error)?) == FileFormat::Dtrace {
        return first_touches(TraceReader::new(file, &path.to_string_lossy())?, path);
    }
    let (mut order, mut line) = (Vec::new(), Vec::new());
    for number in 1.. {
        line.clear();
        let length = file
            .by_ref()
            .take(LINE_MAX)
            .read_until(b'\n', &mut line)
            .map_err(error)?;
        if length == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.split('#').next().unwrap_or_default().trim();
        let wrong = || PushOrderError::Line {
            path: path.into(),
            line: number,
            found: text.chars().take(40).collect(),
        };
        if length as u64 == LINE_MAX {
            return Err(wrong());
        }
        if text.is_empty() {
            continue;
        }
        if order.len() == PAGES_MAX {
            return Err(PushOrderError::TooLong(path.into()));
        }
        // A sign is no part of the number of a page.
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
        let page = text.parse().ok().filter(|_| is_plain);
        order.push(Gfn(page.ok_or_else(wrong)?));
    }
    if order.is_empty() {
        return Err(PushOrderError::Empty(path.into()));
    }
    Ok(order)
}

/// Every page that was written, in the order of the first writes; of a window in ascending order.
fn first_touches(mut trace: TraceReader<BufReader<File>>, path: &Path) -> Result<Vec<Gfn>, PushOrderError> {
    let span = trace.head().span();
    if span.0 > PAGES_MAX as u64 * 64 {
        let (path, pages) = (path.into(), span);
        return Err(PushOrderError::TooLarge { path, pages });
    }
    let mut seen = vec![0_u64; span.0.div_ceil(64) as usize];
    let mut order = Vec::new();
    for item in trace.by_ref() {
        let run = match item? {
            Item::Write { gfn, .. } => Run::new(gfn, Pages(1)),
            Item::Dirty { run } => run,
            _ => continue,
        };
        for page in run.first.0..run.end().0 {
            let (word, bit) = (&mut seen[(page / 64) as usize], 1 << (page % 64));
            if *word & bit == 0 {
                *word |= bit;
                if order.len() == PAGES_MAX {
                    return Err(PushOrderError::TooLong(path.into()));
                }
                order.push(Gfn(page));
            }
        }
    }
    if order.is_empty() {
        return Err(PushOrderError::Empty(path.into()));
    }
    Ok(order)
}

/// Makes the file if there is none, so that what keeps it from being written is known before the migration.
///
/// # Errors
/// [`PushOrderError::Io`].
pub fn check(path: &Path) -> Result<(), PushOrderError> {
    let opened = File::options().append(true).create(true).open(path);
    opened.map(drop).map_err(|source| PushOrderError::Io {
        what: "write",
        path: path.into(),
        source,
    })
}

/// Writes an order; `which` says whose, after "in the order".
///
/// # Errors
/// [`PushOrderError::Io`].
pub fn write(path: &Path, which: &str, order: impl IntoIterator<Item = Gfn>) -> Result<(), PushOrderError> {
    let written = File::create(path).and_then(|file| {
        let mut file = BufWriter::new(file);
        writeln!(file, "# pages of 4096 bytes, in the order {which}")?;
        for gfn in order {
            writeln!(file, "{gfn}")?;
        }
        file.flush()
    });
    written.map_err(|source| PushOrderError::Io {
        what: "write",
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::TraceWriter;
    use dunlin_core::units::Nanos;
    use proptest::prelude::*;

    fn read_text(text: &[u8]) -> Result<Vec<Gfn>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_file_is_taken_out_of_the_strategy() {
        let split = |text| {
            let (strategy, file) = split_file(text);
            (strategy, file.map(|file| file.to_string_lossy().into_owned()))
        };
        for text in ["precopy", "hybrid:1,push=recorded", "hybrid:1,push=bubble:3", ""] {
            assert_eq!(split(text), (text.to_owned(), None));
        }
        assert_eq!(
            split("postcopy,push=recorded:/a b/c:d.txt,cut=fail"),
            (
                "postcopy,push=recorded,cut=fail".to_owned(),
                Some("/a b/c:d.txt".to_owned())
            )
        );
        assert_eq!(
            split("push=recorded:"),
            ("push=recorded".to_owned(), Some(String::new()))
        );
    }

    #[test]
    fn lines_and_comments_are_read() {
        let order = read_text(b"# first\n7\n\n  3 # hot\r\n7\n18446744073709551615").unwrap();
        assert_eq!(order, [7, 3, 7, u64::MAX].map(Gfn));
        for nothing in ["", "# pages\n\n"] {
            let error = read_text(nothing.as_bytes()).unwrap_err();
            assert!(error.contains("has no page numbers"), "{error}");
        }
    }

    #[test]
    fn what_is_no_page_number_is_named_with_its_line() {
        for (text, line, found) in [
            (&b"1\n-2"[..], 2, "-2"),
            (b"+3", 1, "+3"),
            (b"\n\n1 2", 3, "1 2"),
            (b"0x10", 1, "0x10"),
            (b"18446744073709551616", 1, "18446744073709551616"),
        ] {
            let error = read_text(text).unwrap_err();
            assert!(error.contains(&format!("line {line}: \"{found}\"")), "{error}");
        }
        assert!(read_text(b"1\n\xff").unwrap_err().contains("line 2"));
        let endless = [b"7\n".as_slice(), &vec![b'1'; 1 << 20]].concat();
        assert!(read_text(&endless).unwrap_err().contains("line 2"));
        let nowhere = read(Path::new("/nonexistent/order")).unwrap_err();
        assert!(nowhere.to_string().contains("/nonexistent/order"));
    }

    fn trace(pages: u64, items: &[Item]) -> Vec<u8> {
        let memory = dunlin_core::message::Region {
            first: Gfn(0),
            pages: Pages(pages),
        };
        let head = dunlin_core::tracefile::Head {
            source: dunlin_core::tracefile::Source::RingPush,
            regions: [memory].into_iter().collect(),
            used: Pages(1),
            vcpus: 1,
            window: Nanos(0),
            started_unix_ns: 0,
            guest: heapless::String::new(),
        };
        let mut file = Vec::new();
        let mut writer = TraceWriter::new(&mut file, "memory", &head).unwrap();
        items.iter().for_each(|item| writer.push(item).unwrap());
        writer.finish().unwrap();
        file
    }

    #[test]
    fn a_trace_tells_the_order_of_first_writes() {
        let write = |at, gfn| Item::Write {
            at: Nanos(at),
            vcpu: 0,
            gfn: Gfn(gfn),
        };
        let dirty = Item::Dirty {
            run: Run::new(Gfn(6), Pages(3)),
        };
        let file = trace(100, &[write(1, 99), write(2, 7), write(3, 99), dirty, write(4, 0)]);
        assert_eq!(read_text(&file).unwrap(), [99, 7, 6, 8, 0].map(Gfn));
        let mut damaged = file;
        *damaged.last_mut().unwrap() ^= 1;
        assert!(read_text(&damaged).unwrap_err().contains("of no use"));
        assert!(read_text(&trace(100, &[])).unwrap_err().contains("no page numbers"));
        assert!(
            read_text(&trace(1 << 40, &[]))
                .unwrap_err()
                .contains("1099511627776 pages")
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(order: Vec<u64>) {
            let file = tempfile::NamedTempFile::new().unwrap();
            let order: Vec<Gfn> = order.into_iter().map(Gfn).collect();
            write(file.path(), "of a test", order.iter().copied()).unwrap();
            prop_assert_eq!(read(file.path()).unwrap_or_default(), order);
        }

        #[test]
        fn no_text_is_too_strange(text: Vec<u8>) {
            let _ = read_text(&text);
        }
    }
}
