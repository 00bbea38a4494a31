//! What a Linux guest boots.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;

use super::packages::{self, Program};
use crate::initramfs::{Archive, add_base, add_libraries, add_modules, add_program};
use crate::lab::{self, Parts};
use crate::process;

/// The program that runs in the guests.
const CHECKER: &str = "dunlin-guest-check";
/// Drivers of what a guest with an agent has.
const AGENT_MODULES: [&str; 3] = ["virtio_pci", "virtio_console", "virtio_balloon"];

/// A first file system with the guests' program and `program`, and the agent if there is to be one, made once per process: another process may
/// have been built from something else.
///
/// # Errors
/// What is missing, or cannot be built.
pub(super) fn image(parts: &Parts, program: Option<Program>, has_agent: bool) -> anyhow::Result<PathBuf> {
    static MADE: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut name = "guest".to_owned();
    if let Some(program) = program {
        name += &format!("-{}", program.inside().file_name().unwrap_or_default().display());
    }
    let agent = has_agent.then(process::build_agent).transpose()?;
    if has_agent {
        name += "-agent";
    }
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = made.get(&name) {
        return Ok(path.clone());
    }
    let release = cfg!(not(debug_assertions));
    let profile = if release { "release" } else { "debug" };
    let path = lab::folder()?.join(format!("{name}-{profile}.cpio"));
    let checker = process::build_program(CHECKER, release)?;
    write(&path, parts, (&checker, agent), program)?;
    made.insert(name, path.clone());
    Ok(path)
}

/// Others may be booting from what is there, so it is replaced as a whole.
fn write(
    path: &Path,
    parts: &Parts,
    (checker, agent): (&Path, Option<&Path>),
    program: Option<Program>,
) -> anyhow::Result<()> {
    let folder = path.parent().context("the image lies in a folder")?;
    let scratch = tempfile::tempdir_in(folder).context("cannot make a folder for an image")?;
    let new = scratch.path().join("image");
    let mut archive = Archive::new(BufWriter::new(File::create(&new)?));
    add_base(&mut archive, &parts.busybox, include_bytes!("init.sh"))?;
    add_program(&mut archive, checker, &Path::new("/bin").join(CHECKER), scratch.path())?;
    // Whom memcached is to run as.
    archive.file(Path::new("/etc/passwd"), b"root::0:0:root:/:/bin/sh\n")?;
    if let Some(agent) = agent {
        add_modules(&mut archive, &parts.modules, &AGENT_MODULES, Path::new("/lib/modules"))?;
        archive.copy(agent, Path::new("/bin/dunlin-agent"))?;
        archive.file(Path::new("/etc/dunlin/hooks.d/tell"), include_bytes!("hook.sh"))?;
    }
    if let Some(program) = program {
        let root = packages::folder()?;
        let outside = program.find(&root).map_err(anyhow::Error::msg)?;
        archive.copy(&outside, program.inside())?;
        add_libraries(&mut archive, &outside, Some(&root))?;
    }
    archive.finish()?;
    fs::rename(&new, path).with_context(|| format!("cannot write {}", path.display()))
}
