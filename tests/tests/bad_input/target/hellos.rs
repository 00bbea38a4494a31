//! Requests to migrate a VM that cannot be taken.

use dunlin::guest::{GuestConfig, GuestKind};
use dunlin_core::message::{CPUID_ENTRY_BYTES, Capabilities, Hello, Message};
use dunlin_core::units::Bytes;
use dunlin_tests::{Capability, require};

use super::{Case, case, run};
use crate::peer::{PAGES, Peer, config, hello, regions};

const CANNOT_BUILD: &str = "could not build the VM";
const REGIONS: &str = "memory regions are empty, overlap, overflow or lie too far apart";

/// Says hello with something changed.
fn request(peer: &mut Peer, change: impl FnOnce(&mut Hello<'_>)) -> anyhow::Result<()> {
    let config = config().encode();
    let mut hello = hello(&config);
    change(&mut hello);
    peer.say(&Message::Hello(hello))
}

/// Says hello with another configuration.
fn configured(peer: &mut Peer, change: impl FnOnce(&mut GuestConfig)) -> anyhow::Result<()> {
    let mut config = config();
    change(&mut config);
    peer.say(&Message::Hello(hello(&config.encode())))
}

const REQUESTS: [Case; 21] = [
    case(
        "protocol of the future",
        "protocol versions 1 to 1",
        "protocol versions",
        |peer| request(peer, |hello| (hello.protocol_min, hello.protocol_max) = (7, 9)),
    ),
    case(
        "protocol of the past",
        "protocol versions 1 to 1",
        "protocol versions",
        |peer| request(peer, |hello| (hello.protocol_min, hello.protocol_max) = (0, 0)),
    ),
    case(
        "unknown capability",
        "capability bits 0x100",
        "capability bits",
        |peer| {
            request(peer, |hello| {
                hello.capabilities |= Capabilities::from_bits_retain(0x100)
            })
        },
    ),
    case("huge pages", "pages of 4096 bytes", "pages of 4096 bytes", |peer| {
        request(peer, |hello| hello.page_size = 2 << 20)
    }),
    case("no regions", REGIONS, REGIONS, |peer| {
        request(peer, |hello| hello.regions.clear())
    }),
    case("overlapping regions", REGIONS, REGIONS, |peer| {
        request(peer, |hello| hello.regions = regions([(0, 512), (511, 513)]))
    }),
    case("overflowing region", REGIONS, REGIONS, |peer| {
        request(peer, |hello| hello.regions = regions([(u64::MAX, 2)]))
    }),
    case("overflowing bytes", REGIONS, REGIONS, |peer| {
        request(peer, |hello| hello.regions = regions([(0, u64::MAX / 4096 + 1)]))
    }),
    case("far regions", REGIONS, REGIONS, |peer| {
        request(peer, |hello| hello.regions = regions([(0, PAGES - 1), (1 << 40, 1)]))
    }),
    case(
        "other regions",
        CANNOT_BUILD,
        "differ from those of its configuration",
        |peer| request(peer, |hello| hello.regions = regions([(0, PAGES - 1), (PAGES, 1)])),
    ),
    case(
        "too much memory",
        "the target takes at most 8 MiB",
        "--max-memory",
        |peer| request(peer, |hello| hello.regions = regions([(0, 1 << 30)])),
    ),
    case("no vCPUs", "0 vCPUs, the target takes 1 to 4", "0 vCPUs", |peer| {
        request(peer, |hello| hello.vcpus = 0)
    }),
    case(
        "many vCPUs",
        "200 vCPUs, the target takes 1 to 4",
        "200 vCPUs",
        |peer| request(peer, |hello| hello.vcpus = 200),
    ),
    case(
        "state of the future",
        "vCPU state version 1",
        "vCPU state version",
        |peer| request(peer, |hello| hello.state_version = 9),
    ),
    case(
        "malformed CPUID",
        "CPUID table is malformed",
        "CPUID table is malformed",
        |peer| request(peer, |hello| hello.cpuid = &[1; CPUID_ENTRY_BYTES + 1]),
    ),
    case("no configuration", CANNOT_BUILD, "configuration", |peer| {
        request(peer, |hello| hello.config = &[0xff; 99])
    }),
    case(
        "configured with more memory",
        CANNOT_BUILD,
        "differ from those of its configuration",
        |peer| configured(peer, |config| config.memory = Bytes(1 << 40)),
    ),
    case("configured without memory", CANNOT_BUILD, "emory", |peer| {
        configured(peer, |config| config.memory = Bytes(0))
    }),
    case("configured with memory that overflows", CANNOT_BUILD, "emory", |peer| {
        configured(peer, |config| config.memory = Bytes(u64::MAX - 4095))
    }),
    case(
        "configured with more vCPUs",
        CANNOT_BUILD,
        "differ from those of its configuration",
        |peer| configured(peer, |config| config.vcpus = u32::MAX),
    ),
    case(
        "configured with nonsense to do",
        "could not be built",
        "unknown pattern",
        |peer| configured(peer, |config| config.workload = "sing-and-dance".into()),
    ),
];

#[test]
fn what_cannot_be_taken_is_refused_by_name() {
    run(&REQUESTS);
}

#[test]
fn features_that_the_processor_lacks_are_refused_by_name() {
    if !require(Capability::Kvm) {
        return;
    }
    run(&[case(
        "lacking features",
        "lacks CPUID features the VM uses: leaf 0x7.0",
        "leaf 0x7.0",
        |peer| {
            let mut config = config();
            config.kind = GuestKind::Kvm;
            // Function 7 with every feature there may ever be.
            let words = [7, 0, 1, 0, u32::MAX, u32::MAX, u32::MAX];
            let cpuid: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
            let config = config.encode();
            let mut hello = hello(&config);
            hello.cpuid = &cpuid;
            peer.say(&Message::Hello(hello))
        },
    )]);
}
