//! Kernel modules and what they need, in the order in which they must be loaded.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use elf::ElfBytes;
use elf::endian::LittleEndian;

/// The files of `modules` under `folder` and of what they depend on, each after what it needs.
///
/// # Errors
/// If one is not there. Those that are built into the kernel are nobody's dependency.
pub(super) fn in_load_order(folder: &Path, modules: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = BTreeMap::new();
    collect(folder, &mut files)?;
    let mut order = Vec::new();
    for module in modules {
        add(module, &files, &mut order, 0)?;
    }
    Ok(order)
}

/// Deeper than any chain of dependencies is.
const DEPTH_MAX: u32 = 32;

fn add(module: &str, files: &BTreeMap<String, PathBuf>, order: &mut Vec<PathBuf>, depth: u32) -> anyhow::Result<()> {
    ensure!(depth < DEPTH_MAX, "the modules depend on each other in a circle");
    let file = files.get(&canonical(module)).with_context(|| {
        format!("there is no module {module}, uncompressed; `cargo xtask setup` unpacks those of the lab's kernel")
    })?;
    if order.contains(file) {
        return Ok(());
    }
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    for needed in dependencies(&bytes).with_context(|| format!("{} is no kernel module", file.display()))? {
        add(&needed, files, order, depth + 1)?;
    }
    order.push(file.clone());
    Ok(())
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            files.insert(canonical(&name), path);
        }
    }
    Ok(())
}

/// Files are called with hyphens where modules are with underscores.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// `depends=a,b` in a module's information.
fn dependencies(module: &[u8]) -> anyhow::Result<Vec<String>> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(module)?;
    let header = elf
        .section_header_by_name(".modinfo")?
        .context("it has no module information")?;
    let (information, _) = elf.section_data(&header)?;
    Ok(depended(&String::from_utf8_lossy(information)))
}

fn depended(information: &str) -> Vec<String> {
    let fields = information.split('\0');
    let lists = fields.filter_map(|field| field.strip_prefix("depends="));
    let names = lists.flat_map(|list| list.split(',')).filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_module_s_information() {
        assert_eq!(depended("license=GPL\0depends=kvm,ccp\0name=kvm_amd\0"), ["kvm", "ccp"]);
        assert!(depended("license=GPL\0depends=\0").is_empty());
        assert!(dependencies(b"no module").is_err());
    }

    #[test]
    fn a_module_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = in_load_order(folder.path(), &["kvm-amd"]).expect_err("nothing is there");
        assert!(error.to_string().contains("kvm-amd"), "{error}");
    }
}
