//! The malicious peer: frames byte by byte, right or wrong, over TCP.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};

use anyhow::{Context as _, bail, ensure};
use dunlin::guest::{Fill, GuestConfig, GuestKind};
use dunlin_core::message::{
    CONTROL_PAYLOAD_MAX, Capabilities, Hello, Message, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Region, Regions,
    SessionId, VmId,
};
use dunlin_core::units::{Bytes, Gfn, Nanos, PAGE_SIZE, Pages};
use dunlin_core::wire::{FrameHeader, FrameKind, HEADER_BYTES, checksum_message, decode_message, encode_message};
use dunlin_tests::scene::PATIENCE;

/// Memory of the VM that the malicious peer claims to have.
pub(crate) const MEMORY: Bytes = Bytes(4 << 20);
/// The same in pages.
pub(crate) const PAGES: u64 = MEMORY.0 / PAGE_SIZE;

/// One end of a connection.
pub(crate) struct Peer {
    stream: TcpStream,
    /// Number of the next frame.
    pub(crate) sequence: u32,
}

impl Peer {
    /// Connects to `address`.
    pub(crate) fn connect(address: &str) -> anyhow::Result<Self> {
        Self::new(TcpStream::connect(address)?)
    }

    /// Waits for a connection.
    pub(crate) fn accept(listener: &TcpListener) -> anyhow::Result<Self> {
        Self::new(listener.accept()?.0)
    }

    fn new(stream: TcpStream) -> anyhow::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, sequence: 0 })
    }

    /// Sends bytes as they are. The other side may have hung up already: its last words tell why.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match self.stream.write_all(bytes) {
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(()),
            other => Ok(other?),
        }
    }

    /// A header with the next number, otherwise as if for `count` pages from `first`.
    pub(crate) fn header(&mut self, kind: FrameKind, first: u64, count: u32, checksum: Option<u64>) -> FrameHeader {
        self.sequence += 1;
        FrameHeader {
            kind,
            stream: 0,
            sequence: self.sequence - 1,
            count,
            first: Gfn(first),
            checksum,
            round: 0,
        }
    }

    /// Sends a frame of pages, or of a kind without payload.
    pub(crate) fn frame(
        &mut self,
        kind: FrameKind,
        first: u64,
        count: u32,
        checksum: Option<u64>,
    ) -> anyhow::Result<()> {
        let header = self.header(kind, first, count, checksum);
        self.raw(&header.encode())?;
        if kind == FrameKind::Pages {
            self.raw(&vec![7; count as usize * PAGE_SIZE as usize])?;
        }
        Ok(())
    }

    /// The bytes of a control frame around `payload`.
    pub(crate) fn control(&mut self, payload: &[u8]) -> Vec<u8> {
        let header = self.header(
            FrameKind::Control,
            0,
            payload.len() as u32,
            Some(checksum_message(payload)),
        );
        [&header.encode()[..], payload].concat()
    }

    /// The bytes of a message.
    pub(crate) fn encoded(&mut self, message: &Message<'_>) -> Vec<u8> {
        let mut buffer = vec![0; CONTROL_PAYLOAD_MAX];
        let length = encode_message(message, &mut buffer).expect("test messages fit");
        self.control(&buffer[..length])
    }

    /// Sends a message as it should be.
    pub(crate) fn say(&mut self, message: &Message<'_>) -> anyhow::Result<()> {
        let bytes = self.encoded(message);
        self.raw(&bytes)
    }

    /// Ends this direction.
    pub(crate) fn hang_up(&mut self) -> anyhow::Result<()> {
        Ok(self.stream.shutdown(Shutdown::Write)?)
    }

    /// The next header and its payload; nothing at the end of the stream.
    pub(crate) fn next(&mut self) -> anyhow::Result<Option<(FrameHeader, Vec<u8>)>> {
        let mut bytes = [0; HEADER_BYTES];
        match self.stream.read_exact(&mut bytes) {
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return Ok(None);
            }
            other => other.context("nothing was heard")?,
        }
        let header = FrameHeader::decode(&bytes).context("Dunlin sends valid frames")?;
        let length = match header.kind {
            FrameKind::Control => header.count as usize,
            FrameKind::Pages => header.count as usize * PAGE_SIZE as usize,
            _ => 0,
        };
        let mut payload = vec![0; length];
        match self.stream.read_exact(&mut payload) {
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => Ok(None),
            other => Ok(other.map(|()| Some((header, payload)))?),
        }
    }

    /// Skips frames until a message that pleases `wanted`.
    pub(crate) fn wait_for(&mut self, wanted: impl Fn(&Message<'_>) -> bool) -> anyhow::Result<()> {
        self.hear(|message| wanted(message).then_some(()))
    }

    /// Skips frames until `find` finds something in a message.
    pub(crate) fn hear<T>(&mut self, find: impl Fn(&Message<'_>) -> Option<T>) -> anyhow::Result<T> {
        while let Some((header, payload)) = self.next()? {
            if header.kind != FrameKind::Control {
                continue;
            }
            let message = decode_message(&payload)?;
            if let Some(found) = find(&message) {
                return Ok(found);
            }
            ensure!(
                !matches!(message, Message::Refused(_) | Message::Abort(_)),
                "heard {message:?} instead"
            );
        }
        bail!("the connection was closed before the message that was waited for")
    }

    /// Listens until the other side says no or closes; what it said, in words.
    pub(crate) fn last_words(&mut self) -> anyhow::Result<String> {
        let mut words = String::from("closed");
        while let Some((header, payload)) = self.next()? {
            if header.kind != FrameKind::Control {
                continue;
            }
            match decode_message(&payload)? {
                Message::Refused(refusal) => words = format!("refused: {refusal}"),
                Message::Abort(reason) => words = format!("aborted: {reason}"),
                Message::Resumed(standing) => words = format!("resumed: {standing:?}"),
                _ => {}
            }
        }
        Ok(words)
    }
}

/// A configuration that fits [`hello`].
pub(crate) fn config() -> GuestConfig {
    GuestConfig {
        name: "mallory".into(),
        kind: GuestKind::Thread,
        memory: MEMORY,
        vcpus: 1,
        workload: "idle".into(),
        seed: 7,
        steps: None,
        fill: Fill::Zero,
        irqchip: false,
    }
}

/// Regions from pairs of first frame and pages.
pub(crate) fn regions<const N: usize>(pairs: [(u64, u64); N]) -> Regions {
    let region = |(first, pages)| Region {
        first: Gfn(first),
        pages: Pages(pages),
    };
    pairs.into_iter().map(region).collect()
}

/// A request to migrate that a target accepts, for a VM with `config`.
pub(crate) fn hello(config: &[u8]) -> Hello<'_> {
    Hello {
        protocol_min: PROTOCOL_VERSION_MIN,
        protocol_max: PROTOCOL_VERSION,
        capabilities: Capabilities::CHECKSUM,
        session: SessionId(0x5e55),
        vm: VmId(0xbad),
        page_size: PAGE_SIZE as u32,
        regions: regions([(0, PAGES)]),
        vcpus: 1,
        tsc_khz: 0,
        state_version: 1,
        network_timeout: Nanos::from_secs(60),
        cpuid: &[],
        config,
    }
}
