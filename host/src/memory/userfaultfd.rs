//! Missing pages: the guest waits at them until the host has brought their content.
//!
//! userfaultfd(2). While a range is registered, whoever touches an absent page of it sleeps until the page is installed
//! (or woken). KVM touches guest memory from the kernel, so a descriptor limited to user-mode faults does not serve it.
//!
//! Closing the descriptor lets sleepers go on *with zero pages*. So it stays open until the guest is complete or its
//! vCPUs have stopped for good, and a process whose fault handler dies must die with it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};

use super::{GuestMemory, MemoryError, Run};

// include/uapi/linux/userfaultfd.h
const UFFD_API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
/// `_IO(USERFAULTFD_IOC, 0)` on /dev/userfaultfd.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
const MODE_MISSING: u64 = 1 << 0;
const MODE_WP: u64 = 1 << 1;
const USER_MODE_ONLY: libc::c_int = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const PAGEFAULT_FLAG_WRITE: u64 = 1 << 0;

/// Pages are write-protected without a handler: the first write only leaves a mark.
const FEATURE_WP_ASYNC: u64 = 1 << 15;
/// Absent pages can be write-protected too.
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
/// Write protection of shared memory and huge pages.
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
/// Write protection as such.
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;

/// Why userfaultfd does not serve.
#[derive(Debug, thiserror::Error)]
pub enum UserfaultfdError {
    /// The kernel has none.
    #[error("This kernel has no userfaultfd; use one built with CONFIG_USERFAULTFD")]
    Unsupported(#[source] io::Error),

    /// The user may not.
    #[error(
        "userfaultfd is denied; run as root or with CAP_SYS_PTRACE, set sysctl vm.unprivileged_userfaultfd=1, or grant access to /dev/userfaultfd"
    )]
    Denied(#[source] io::Error),

    /// The kernel's userfaultfd is too old for what is asked of it.
    #[error("This kernel's userfaultfd lacks features {wanted:#x}; use Linux 6.7 or newer")]
    Features {
        /// The UFFD_FEATURE bits asked for.
        wanted: u64,
        /// What the kernel said.
        source: io::Error,
    },

    /// An operation failed.
    #[error("{call} failed on pages {first}+{count} of guest memory")]
    Operation {
        /// The operation.
        call: &'static str,
        /// The first page.
        first: Gfn,
        /// How many.
        count: Pages,
        /// What the kernel said.
        source: io::Error,
    },

    /// Events could not be read.
    #[error("Page faults can no longer be read from userfaultfd")]
    Events(#[source] io::Error),

    /// An event this program never asked for.
    #[error("userfaultfd reported event {0:#x}, which was not asked for")]
    UnknownEvent(u8),

    /// Pages that are no RAM, or a buffer of the wrong length.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Whose faults a descriptor reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultOrigin {
    /// Those of threads and those of the kernel on behalf of a guest: what KVM needs. Takes privileges.
    All,
    /// Only those of threads in user mode; enough for thread guests, and everyone may.
    UserMode,
}

/// A missing page that somebody waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fault {
    /// The page.
    pub gfn: Gfn,
    /// Whether it is about to be written.
    pub write: bool,
}

/// What became of an installation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Installed {
    /// Pages that were missing and have been installed.
    pub installed: Pages,
    /// Pages that were there already and were left as they are.
    pub present: Pages,
}

/// A userfaultfd over the RAM of one guest.
#[derive(Debug)]
pub struct Userfaultfd {
    fd: OwnedFd,
    memory: Arc<GuestMemory>,
}

impl Userfaultfd {
    /// A descriptor for missing pages of this memory; [`register_missing`](Self::register_missing) makes it effective.
    ///
    /// # Errors
    /// [`UserfaultfdError::Unsupported`], [`Denied`](UserfaultfdError::Denied), each saying what to do.
    pub fn open(memory: Arc<GuestMemory>, origin: FaultOrigin) -> Result<Self, UserfaultfdError> {
        Self::open_with(memory, origin, 0)
    }

    /// A descriptor that write-protects all RAM without a handler: a first write only leaves its mark. Nobody ever waits,
    /// so privileges are not needed.
    pub(crate) fn open_write_protection(memory: Arc<GuestMemory>) -> Result<Self, UserfaultfdError> {
        let features =
            FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_WP_HUGETLBFS_SHMEM | FEATURE_PAGEFAULT_FLAG_WP;
        let uffd = Self::open_with(memory, FaultOrigin::UserMode, features)?;
        uffd.register(MODE_WP)?;
        Ok(uffd)
    }

    fn open_with(memory: Arc<GuestMemory>, origin: FaultOrigin, features: u64) -> Result<Self, UserfaultfdError> {
        let fd = open_descriptor(origin)?;
        let mut argument = [UFFD_API, features, 0];
        control(&fd, UFFDIO_API, &mut argument).map_err(|source| UserfaultfdError::Features {
            wanted: features,
            source,
        })?;
        Ok(Self { fd, memory })
    }

    /// From now on absent pages of all RAM are missing: touching one waits for its installation.
    ///
    /// # Errors
    /// [`UserfaultfdError::Operation`].
    pub fn register_missing(&self) -> Result<(), UserfaultfdError> {
        self.register(MODE_MISSING)
    }

    fn register(&self, mode: u64) -> Result<(), UserfaultfdError> {
        for region in self.memory.layout().regions() {
            let mut argument = [self.memory.host_address(region.first), region.count.bytes().0, mode, 0];
            self.operate("UFFDIO_REGISTER", UFFDIO_REGISTER, *region, &mut argument)?;
        }
        Ok(())
    }

    /// Ends the watch. Pages that are absent read as zero from now on, also for those who wait: only for memory that is
    /// complete, or a guest that will not run here.
    ///
    /// # Errors
    /// [`UserfaultfdError::Operation`].
    pub fn unregister(&self) -> Result<(), UserfaultfdError> {
        for region in self.memory.layout().regions() {
            let mut argument = [self.memory.host_address(region.first), region.count.bytes().0];
            self.operate("UFFDIO_UNREGISTER", UFFDIO_UNREGISTER, *region, &mut argument)?;
        }
        Ok(())
    }

    /// Write-protects all RAM.
    pub(crate) fn write_protect(&self) -> Result<(), UserfaultfdError> {
        for region in self.memory.layout().regions() {
            let mut argument = [self.memory.host_address(region.first), region.count.bytes().0, 1];
            self.operate("UFFDIO_WRITEPROTECT", UFFDIO_WRITEPROTECT, *region, &mut argument)?;
        }
        Ok(())
    }

    /// Installs the pages in `from`, from `gfn` on, and wakes whoever waits for them. Pages that are present keep their
    /// content, which is newer or equal: so installing twice, or from two sides at once, is harmless.
    ///
    /// # Errors
    /// A length that is not whole pages, pages that are no RAM, [`UserfaultfdError::Operation`].
    pub fn copy(&self, gfn: Gfn, from: &[u8]) -> Result<Installed, UserfaultfdError> {
        let count = Pages(from.len() as u64 / PAGE_SIZE);
        if !(from.len() as u64).is_multiple_of(PAGE_SIZE) {
            return Err(MemoryError::BufferLength { len: from.len(), count }.into());
        }
        let source = from.as_ptr() as u64;
        self.install(Run { first: gfn, count }, |address, done, len| {
            let mut argument = [address, source + done, len, 0, 0];
            let result = control(&self.fd, UFFDIO_COPY, &mut argument);
            (result, argument[4])
        })
        .map_err(|(run, source)| UserfaultfdError::Operation {
            call: "UFFDIO_COPY",
            first: run.first,
            count: run.count,
            source,
        })
    }

    /// Installs zero pages and wakes whoever waits for them. Pages that are present keep their content.
    ///
    /// # Errors
    /// As [`copy`](Self::copy).
    pub fn zero(&self, run: Run) -> Result<Installed, UserfaultfdError> {
        self.install(run, |address, _, len| {
            let mut argument = [address, len, 0, 0];
            let result = control(&self.fd, UFFDIO_ZEROPAGE, &mut argument);
            (result, argument[3])
        })
        .map_err(|(run, source)| UserfaultfdError::Operation {
            call: "UFFDIO_ZEROPAGE",
            first: run.first,
            count: run.count,
            source,
        })
    }

    /// Wakes whoever waits for these pages; who still finds none faults again.
    ///
    /// # Errors
    /// [`UserfaultfdError::Operation`], pages that are no RAM.
    pub fn wake(&self, run: Run) -> Result<(), UserfaultfdError> {
        self.memory.check(run)?;
        let mut argument = [self.memory.host_address(run.first), run.count.bytes().0];
        self.operate("UFFDIO_WAKE", UFFDIO_WAKE, run, &mut argument)
    }

    /// Reads the faults that are waiting into `into` and returns how many; 0 when there are none. Never waits: use
    /// poll(2) on the descriptor. One page can be reported several times.
    ///
    /// # Errors
    /// [`UserfaultfdError::Events`], [`UserfaultfdError::UnknownEvent`].
    pub fn read_events(&self, into: &mut [Fault]) -> Result<usize, UserfaultfdError> {
        const BATCH: usize = 32;
        let mut messages = [Message::default(); BATCH];
        let room = &mut messages[..into.len().min(BATCH)];
        // SAFETY: the kernel writes whole messages, at most as many bytes as `room` has.
        let read = unsafe {
            libc::read(
                self.fd.as_raw_fd(),
                room.as_mut_ptr().cast(),
                std::mem::size_of_val::<[Message]>(room),
            )
        };
        let Ok(bytes) = usize::try_from(read) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                _ => Err(UserfaultfdError::Events(error)),
            };
        };
        let mut count = 0;
        for message in &room[..bytes / size_of::<Message>()] {
            if message.event != EVENT_PAGEFAULT {
                return Err(UserfaultfdError::UnknownEvent(message.event));
            }
            // Only RAM is registered, so every fault lies in it.
            if let Some(gfn) = self.memory.gfn_of(message.address) {
                into[count] = Fault {
                    gfn,
                    write: message.flags & PAGEFAULT_FLAG_WRITE != 0,
                };
                count += 1;
            }
        }
        Ok(count)
    }

    /// Installs a run by `call(host address, bytes done before, bytes)`, which returns the ioctl's result and its count of
    /// installed bytes, going around pages that are present.
    fn install(
        &self,
        run: Run,
        mut call: impl FnMut(u64, u64, u64) -> (io::Result<()>, u64),
    ) -> Result<Installed, (Run, io::Error)> {
        self.memory.check(run).map_err(|error| (run, error.into()))?;
        let mut outcome = Installed::default();
        let mut done = 0;
        while done < run.count.0 {
            let rest = Run {
                first: Gfn(run.first.0 + done),
                count: Pages(run.count.0 - done),
            };
            let (result, bytes) = call(
                self.memory.host_address(rest.first),
                done * PAGE_SIZE,
                rest.count.bytes().0,
            );
            // On failure the count is a negative error, or what was installed before the page that failed.
            let installed = if bytes as i64 > 0 { bytes / PAGE_SIZE } else { 0 };
            match result {
                Ok(()) => {
                    outcome.installed.0 += rest.count.0;
                    done = run.count.0;
                }
                Err(error) => match error.raw_os_error() {
                    // Partly done, or the address space is changing under it.
                    Some(libc::EAGAIN) => {
                        outcome.installed.0 += installed;
                        done += installed;
                    }
                    Some(libc::EEXIST) => {
                        // Who installed it has woken those who waited then; one who came in between may still sleep.
                        let page = Run {
                            first: rest.first,
                            count: Pages(1),
                        };
                        let mut argument = [self.memory.host_address(page.first), PAGE_SIZE];
                        control(&self.fd, UFFDIO_WAKE, &mut argument).map_err(|error| (page, error))?;
                        outcome.present.0 += 1;
                        done += 1;
                    }
                    Some(libc::EINTR) => {}
                    _ => return Err((rest, error)),
                },
            }
        }
        Ok(outcome)
    }

    fn operate<const N: usize>(
        &self,
        call: &'static str,
        request: libc::c_ulong,
        run: Run,
        argument: &mut [u64; N],
    ) -> Result<(), UserfaultfdError> {
        control(&self.fd, request, argument).map_err(|source| UserfaultfdError::Operation {
            call,
            first: run.first,
            count: run.count,
            source,
        })
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `struct uffd_msg` of a page fault.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

fn open_descriptor(origin: FaultOrigin) -> Result<OwnedFd, UserfaultfdError> {
    let mode = if origin == FaultOrigin::UserMode {
        USER_MODE_ONLY
    } else {
        0
    };
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | mode;
    // SAFETY: userfaultfd(2) takes flags only and returns a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if fd >= 0 {
        return Ok(owned(fd as libc::c_int));
    }
    let denied = io::Error::last_os_error();
    match denied.raw_os_error() {
        Some(libc::ENOSYS) => Err(UserfaultfdError::Unsupported(denied)),
        Some(libc::EPERM) => match OpenOptions::new().read(true).write(true).open("/dev/userfaultfd") {
            Ok(device) => {
                // SAFETY: this ioctl takes the same flags by value and returns a new descriptor.
                let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
                if fd < 0 {
                    Err(UserfaultfdError::Denied(io::Error::last_os_error()))
                } else {
                    Ok(owned(fd))
                }
            }
            Err(_) => Err(UserfaultfdError::Denied(denied)),
        },
        _ => Err(UserfaultfdError::Denied(denied)),
    }
}

fn owned(fd: libc::c_int) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn control<const N: usize>(fd: &OwnedFd, request: libc::c_ulong, argument: &mut [u64; N]) -> io::Result<()> {
    // SAFETY: each request's structure consists of exactly N 64-bit fields, in which the kernel also answers. Addresses in
    // it lie in the guest's mapping or in a buffer that the caller borrows; installing pages writes guest memory, of
    // which no reference exists.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument.as_mut_ptr()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
