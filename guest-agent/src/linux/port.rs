//! A virtio-serial port.
//!
//! drivers/char/virtio_console.c: reading a port that no host has open gives end of file, and so does polling it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;

/// Where the kernel says what its ports are called.
const NAMES: &str = "/sys/class/virtio-ports";

/// An open port.
#[derive(Debug)]
pub(super) struct Port {
    file: File,
}

impl Port {
    /// By its name, or as a device file.
    ///
    /// # Errors
    /// If there is no such port, or somebody else has it.
    pub(super) fn open(name: &str) -> io::Result<Self> {
        let path = if name.contains('/') {
            PathBuf::from(name)
        } else {
            find(Path::new(NAMES), name)?
        };
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        rustix::fs::fcntl_setfl(&file, OFlags::NONBLOCK)?;
        Ok(Self { file })
    }

    /// Reads what is there; `Some(0)` if nobody is at the other end. Waits for something if `wait`, else nothing may be there: `None`.
    pub(super) fn read(&mut self, buffer: &mut [u8], wait: bool) -> io::Result<Option<usize>> {
        loop {
            match self.file.read(buffer) {
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !wait => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::IN)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes all of it; gives up what a host that has gone does not take.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Ok(()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.wait(PollFlags::OUT).map(|()| self.has_peer())? {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn wait(&self, flags: PollFlags) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.file, flags)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn has_peer(&self) -> bool {
        let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
        let none = rustix::time::Timespec::default();
        let polled = poll(&mut fds, Some(&none));
        polled.is_ok() && !fds[0].revents().contains(PollFlags::HUP)
    }
}

/// The device file of the port with this name. No udev is needed for it.
fn find(names: &Path, name: &str) -> io::Result<PathBuf> {
    let none = || {
        io::Error::new(
            io::ErrorKind::NotFound,
            "the guest has no virtio-serial port of this name",
        )
    };
    for entry in fs::read_dir(names).map_err(|_| none())? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|found| found.trim_end() == name) {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_found_by_name() {
        let folder = std::env::temp_dir().join(format!("dunlin-agent-ports-{}", std::process::id()));
        for (port, name) in [
            ("vport0p1", "org.qemu.guest_agent.0"),
            ("vport1p1", "org.dunlin.agent.0"),
        ] {
            fs::create_dir_all(folder.join(port)).unwrap();
            fs::write(folder.join(port).join("name"), format!("{name}\n")).unwrap();
        }
        assert_eq!(find(&folder, "org.dunlin.agent.0").unwrap(), Path::new("/dev/vport1p1"));
        assert_eq!(find(&folder, "org.dunlin").unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::remove_dir_all(&folder).unwrap();
        assert!(find(&folder, "org.dunlin.agent.0").is_err());
    }
}
