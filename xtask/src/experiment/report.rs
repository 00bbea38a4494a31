//! `report.html`: all simulated experiments of a folder on one page, made from what is kept there, and the live ones beside it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

use super::document::{Document, KIND, SCHEMA};
use super::{live_section, page};

/// What tells a document from others.
#[derive(Deserialize)]
struct Head {
    schema: Option<String>,
    kind: Option<String>,
}

/// Makes the page from all documents in a folder; `known` are the experiments there are. Returns where it is.
pub(super) fn write(folder: &Path, known: &[String]) -> anyhow::Result<PathBuf> {
    let documents = read(folder)?;
    let path = folder.join("report.html");
    let text = page::page(&documents, &live_section::beside(folder), known);
    fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(path)
}

fn read(folder: &Path) -> anyhow::Result<Vec<Document>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    let mut documents = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let Ok(Head {
            schema: Some(schema),
            kind: Some(kind),
        }) = serde_json::from_str(&text)
        else {
            continue;
        };
        if (schema.as_str(), kind.as_str()) != (SCHEMA, KIND) {
            continue;
        }
        match serde_json::from_str::<Document>(&text) {
            Ok(document) => documents.push(document),
            Err(error) => eprintln!(
                "{} is of another version of the program and not in the report ({error}): simulate it again",
                path.display()
            ),
        }
    }
    documents.sort_by_cached_key(|document| order(&document.id));
    Ok(documents)
}

/// Figures before tables, those of the first paper before those of the other, our own last; F8b before F10.
fn order(id: &str) -> (u8, Vec<(String, u64)>) {
    let of_first = |kind: char| {
        id.strip_prefix(kind)
            .is_some_and(|rest| rest.starts_with(|next: char| next.is_ascii_digit()))
    };
    let class = match id {
        _ if of_first('F') => 0,
        _ if of_first('T') => 1,
        _ if id.starts_with(|first: char| first.is_ascii_digit()) => 2,
        _ => 3,
    };
    let mut parts: Vec<(String, u64)> = vec![(String::new(), 0)];
    for character in id.chars() {
        let Some((word, number)) = parts.last_mut() else { break };
        match character.to_digit(10) {
            Some(digit) => *number = number.saturating_mul(10).saturating_add(u64::from(digit)),
            None if *number > 0 => parts.push((character.to_string(), 0)),
            None => word.push(character),
        }
    }
    (class, parts)
}

#[cfg(test)]
mod tests {
    use super::super::simulated::tests::document;
    use super::*;

    #[test]
    fn experiments_stand_in_the_order_of_the_papers() {
        let mut ids = [
            "rho", "003-F4", "T5", "F10", "T1", "003-F3", "F8b", "F8a", "alpha", "F1", "Fast",
        ];
        ids.sort_by_cached_key(|id| order(id));
        let expected = [
            "F1", "F8a", "F8b", "F10", "T1", "T5", "003-F3", "003-F4", "Fast", "alpha", "rho",
        ];
        assert_eq!(ids, expected);
    }

    #[test]
    fn a_page_is_made_from_what_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut kept = document();
        let keep = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
        keep("tiny.json", &kept.to_text().expect("a document"));
        kept.id = "other".into();
        kept.title = "Another guest".into();
        keep("other.json", &kept.to_text().expect("a document"));
        keep("R9.json", r#"{"schema": "dunlin.experiment.v1", "id": "R9"}"#);
        keep(
            "old.json",
            r#"{"schema": "dunlin.experiment.v1", "kind": "simulated", "id": "old"}"#,
        );
        keep("notes.json", "[]");
        keep("tiny.csv", "memory,arm");
        let known = ["other".to_owned(), "tiny".to_owned()];
        let path = write(folder.path(), &known).expect("written");
        let text = fs::read_to_string(&path).expect("a page");
        assert!(
            text.contains("Another guest") && text.contains("A tiny guest"),
            "{text}"
        );
        assert!(!text.contains("R9"), "what is live is no part of it");
        write(folder.path(), &known).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("a page"), text);
    }
}
