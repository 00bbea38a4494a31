//! Sockets to and from guest memory without a copy in between.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{GuestMemory, Run};

/// Most pieces that go into one system call; the rest is left to the next.
const MAX_PIECES: usize = 64;

/// A piece of what is sent.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// Bytes of the host, such as a frame header.
    Host(&'a [u8]),
    /// Pages of the guest, read by the kernel at the moment of the call.
    Guest(Run),
}

impl GuestMemory {
    /// Sends the concatenation of `parts` from byte `offset` on, in one `sendmsg` that never waits and raises no
    /// SIGPIPE. Returns the bytes taken, which may be fewer than all; the caller comes back with a larger offset.
    ///
    /// # Errors
    /// `WouldBlock` when the socket takes nothing now; `InvalidInput` for pages that are not RAM or an offset past the
    /// end; what the socket reports otherwise.
    pub fn send(&self, socket: BorrowedFd<'_>, parts: &[Part<'_>], offset: usize) -> io::Result<usize> {
        let mut pieces = Pieces::new(offset);
        for part in parts {
            let wanted = match part {
                Part::Host(bytes) => pieces.push(bytes.as_ptr().cast_mut(), bytes.len()),
                Part::Guest(run) => pieces.push(self.run_pointer(*run)?, run_bytes(*run)),
            };
            if !wanted {
                break;
            }
        }
        let message = pieces.message()?;
        // SAFETY: each piece is a host slice borrowed for the call or a run of RAM, which stays mapped while `self` is
        // borrowed; the kernel only reads them.
        retry(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) })
    }

    /// Receives straight into the concatenation of `runs` from byte `offset` on, in one `recvmsg` that never waits. Returns the bytes received; 0 means that the peer has closed. Pages that userfaultfd
    /// watches must not be received into: the kernel would wait for the fault handler.
    ///
    /// # Errors
    /// `WouldBlock` when nothing has arrived; `InvalidInput` for pages that are not RAM or an offset past the end; what
    /// the socket reports otherwise.
    pub fn receive(&self, socket: BorrowedFd<'_>, runs: &[Run], offset: usize) -> io::Result<usize> {
        let mut pieces = Pieces::new(offset);
        for run in runs {
            if !pieces.push(self.run_pointer(*run)?, run_bytes(*run)) {
                break;
            }
        }
        let mut message = pieces.message()?;
        // SAFETY: each piece is a run of RAM, which stays mapped while `self` is borrowed; the kernel writes bytes there,
        // of which no reference exists.
        retry(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) })
    }
}

/// Up to [`MAX_PIECES`] pieces of memory, the first `skip` bytes left out.
struct Pieces {
    skip: usize,
    count: usize,
    vectors: [libc::iovec; MAX_PIECES],
}

impl Pieces {
    fn new(skip: usize) -> Self {
        Self {
            skip,
            count: 0,
            vectors: [libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            }; MAX_PIECES],
        }
    }

    /// Adds a piece; false when there is no room for more.
    fn push(&mut self, pointer: *mut u8, len: usize) -> bool {
        let skipped = self.skip.min(len);
        self.skip -= skipped;
        if skipped < len {
            self.vectors[self.count] = libc::iovec {
                iov_base: pointer.wrapping_add(skipped).cast(),
                iov_len: len - skipped,
            };
            self.count += 1;
        }
        self.count < MAX_PIECES
    }

    fn message(&mut self) -> io::Result<libc::msghdr> {
        if self.count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "nothing is left at this offset",
            ));
        }
        // SAFETY: msghdr is plain numbers and pointers, for which all zeros mean "none".
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.vectors.as_mut_ptr();
        message.msg_iovlen = self.count as _;
        Ok(message)
    }
}

fn run_bytes(run: Run) -> usize {
    usize::try_from(run.count.bytes().0).expect("bounded by the layout")
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(bytes) => return Ok(bytes),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use dunlin_core::units::Gfn;

    use super::super::tests::{memory, noise, run};
    use super::*;

    const MIB: u64 = 1 << 20;

    /// More parts than fit one call, sent and received in as many steps as the sockets ask for.
    #[test]
    fn scattered_pages_arrive_whole() {
        let (source, target) = (memory(4 * MIB), memory(4 * MIB));
        source.fill(run(0, 1024), noise).unwrap();
        let (mut near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let runs: Vec<Run> = (0..100).map(|index| run(index * 10, 1 + index % 3)).collect();
        let mut parts = vec![Part::Host(b"header")];
        parts.extend(runs.iter().map(|run| Part::Guest(*run)));
        let total: usize = 6 + runs.iter().map(|run| run_bytes(*run)).sum::<usize>();

        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut header = [0; 6];
                far.read_exact(&mut header).unwrap();
                assert_eq!(&header, b"header");
                let mut offset = 0;
                while offset < total - 6 {
                    match target.receive(far.as_fd(), &runs, offset) {
                        Ok(0) => panic!("the stream has ended"),
                        Ok(received) => offset += received,
                        Err(error) => {
                            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                            std::thread::yield_now();
                        }
                    }
                }
                far.write_all(b"k").unwrap();
            });
            let mut offset = 0;
            while offset < total {
                match source.send(near.as_fd(), &parts, offset) {
                    Ok(sent) => offset += sent,
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                        std::thread::yield_now();
                    }
                }
            }
            assert_eq!(offset, total);
            near.set_nonblocking(false).unwrap();
            near.read_exact(&mut [0]).unwrap();
        });
        for run in runs {
            assert_eq!(source.hash_run(run).unwrap(), target.hash_run(run).unwrap());
        }
        assert!(target.is_zero(Gfn(5)).unwrap());
    }

    #[test]
    fn wrong_pages_and_offsets_are_refused() {
        let memory = memory(4 * MIB);
        let (near, _far) = UnixStream::pair().unwrap();
        let outside = [Part::Guest(run(1023, 2))];
        assert_eq!(
            memory.send(near.as_fd(), &outside, 0).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        assert_eq!(
            memory.receive(near.as_fd(), &[run(1024, 1)], 0).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        let past = memory.send(near.as_fd(), &[Part::Host(b"abc")], 3);
        assert_eq!(past.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_full_or_closed_socket_is_an_error_not_a_signal() {
        let memory = memory(4 * MIB);
        memory.fill(run(0, 1024), noise).unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        let parts = [Part::Guest(run(0, 1024))];
        let mut offset = 0;
        let full = loop {
            match memory.send(near.as_fd(), &parts, offset) {
                Ok(sent) => offset += sent,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        drop(far);
        assert_eq!(
            memory.send(near.as_fd(), &parts, 0).unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }
}
