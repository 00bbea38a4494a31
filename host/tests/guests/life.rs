use super::*;
use dunlin::guest::{GuestError, RunState};
use dunlin_core::workload::layout::{BOOT_BLOCK, PAYLOAD, WORKLOAD};

#[test]
fn the_same_guest_twice_ends_with_the_same_memory() {
    for config in shapes("uniform", 800) {
        let first = undisturbed(&config);
        assert_eq!(first, undisturbed(&config), "{}", shape(&config));
        assert_ne!(
            first,
            undisturbed(&GuestConfig {
                seed: 8,
                ..config.clone()
            }),
            "{}",
            shape(&config)
        );
    }
}

#[test]
fn random_fill_is_part_of_what_a_guest_is() {
    for config in shapes("zipf:0.9,ws=4MiB", 300) {
        let config = GuestConfig {
            fill: Fill::Random,
            ..config
        };
        let guest = AnyGuest::create(config.clone()).unwrap();
        let last = guest.memory().end_gfn().0 - 1;
        assert!(!guest.memory().is_zero(Gfn(last)).unwrap(), "filled to the end");
        assert_eq!(finish(&guest), undisturbed(&config), "{}", shape(&config));
    }
}

#[test]
fn pauses_leave_no_trace_in_memory() {
    for config in shapes("phases:(seq,rate=20000)*300+(uniform)*300", 1200) {
        let guest = AnyGuest::create(config.clone()).unwrap();
        assert_eq!(guest.progress().state, RunState::Paused);
        let total = 1200 * u64::from(config.vcpus);
        for part in 1..=12 {
            guest.resume().unwrap();
            wait_for_steps(&guest, total * part / 13);
            guest.pause().unwrap();
            guest.pause().unwrap();
            let before = (guest.progress().steps(), guest.memory().blake3().unwrap());
            std::thread::yield_now();
            assert_eq!(
                (guest.progress().steps(), guest.memory().blake3().unwrap()),
                before,
                "it is really stopped"
            );
        }
        assert_eq!(finish(&guest), undisturbed(&config), "{}", shape(&config));
        assert_eq!(guest.progress().state, RunState::Halted);
        guest.pause().unwrap();
        guest.resume().unwrap();
        assert_eq!(
            guest.progress().state,
            RunState::Halted,
            "a guest that has ended stays so"
        );
    }
}

/// At one step a second and four vCPUs, each sleeps for four seconds after a step.
#[test]
fn a_pause_does_not_wait_for_a_sleeping_vcpu() {
    let mut kinds = vec![GuestKind::Thread];
    if require(Capability::Kvm) {
        kinds.push(GuestKind::Kvm);
    }
    for kind in kinds {
        let guest = AnyGuest::create(config(kind, 4, "seq,rate=1", 1000)).unwrap();
        guest.resume().unwrap();
        wait_for_steps(&guest, 4);
        let start = Instant::now();
        guest.pause().unwrap();
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{kind:?}: {:?}",
            start.elapsed()
        );
        guest.resume().unwrap();
        guest.hold();
        let start = Instant::now();
        drop(guest);
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{kind:?}: {:?}",
            start.elapsed()
        );
    }
}

#[test]
fn a_held_guest_stops_by_itself_and_can_go_on() {
    // Slow enough that it cannot halt before it is held, whatever else the machine does.
    for config in shapes("uniform,rate=1000", 2000) {
        let guest = AnyGuest::create(config.clone()).unwrap();
        for _ in 0..5 {
            guest.resume().unwrap();
            guest.hold();
        }
        let deadline = Instant::now() + PATIENCE;
        while guest.progress().state != RunState::Paused {
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::yield_now();
        }
        assert!(!guest.progress().all_halted());
        assert_eq!(finish(&guest), undisturbed(&config), "{}", shape(&config));
    }
}

#[test]
fn gaps_and_reports_are_measured_from_the_mark() {
    for config in shapes("seq,rate=10000", 1_000_000) {
        let guest = AnyGuest::create(config).unwrap();
        guest.resume().unwrap();
        wait_for_steps(&guest, 100);
        guest.pause().unwrap();
        let pause = Duration::from_millis(100);
        std::thread::sleep(pause);
        guest.resume().unwrap();
        let resumed = guest.progress().steps();
        wait_for_steps(&guest, resumed + 200);
        let progress = guest.progress();
        assert!(progress.longest_gap >= pause, "{:?}", progress.longest_gap);
        for vcpu in &progress.vcpus {
            let (resumed, first) = (vcpu.resumed.unwrap(), vcpu.first_since_resume.unwrap());
            assert!(first >= resumed && vcpu.last.unwrap() >= first);
        }
        guest.mark();
        wait_for_steps(&guest, progress.steps() + 200);
        assert!(guest.progress().longest_gap > Duration::ZERO);
    }
}

#[test]
fn eight_gibibytes_work_on_both_sides_of_the_hole() {
    if !require(Capability::Kvm) {
        return;
    }
    let config = GuestConfig {
        memory: Bytes(8192 * MIB),
        ..config(GuestKind::Kvm, 2, "uniform", 1200)
    };
    let guest = AnyGuest::create(config).unwrap();
    finish(&guest);
    let memory = guest.memory();
    let [low, high] = memory.layout().regions() else {
        panic!("8 GiB lie in two regions")
    };
    for region in [low, high] {
        assert!(
            memory.present_pages(*region).unwrap() > Pages(400),
            "{region} has been written"
        );
    }
    assert!(memory.resident().unwrap() < Bytes(256 * MIB), "and nothing else");
}

/// What goes wrong inside is told, never a panic and never a hang.
#[test]
fn a_broken_guest_fails_and_says_why() {
    let broken = |config: &GuestConfig, break_it: &dyn Fn(&GuestMemory)| {
        let guest = AnyGuest::create(config.clone()).unwrap();
        break_it(guest.memory());
        guest.resume().unwrap();
        let why = guest.wait_halted(PATIENCE).unwrap_err().to_string();
        assert_eq!(guest.progress().state, RunState::Failed);
        assert!(why.contains(&guest.progress().failure.unwrap()[8..]), "{why}");
        assert!(matches!(guest.pause(), Err(GuestError::VcpuFailed { .. })));
        assert!(matches!(guest.resume(), Err(GuestError::VcpuFailed { .. })));
        assert!(matches!(guest.save_state(), Err(GuestError::VcpuFailed { .. })));
        why
    };
    for config in shapes("seq,ws=1MiB", 100_000) {
        // The first page of the working set, which the ledger says has never been written.
        let damaged = WORKLOAD / PAGE_SIZE + 1;
        let why = broken(&config, &|memory| memory.write_u64(damaged * PAGE_SIZE, 0xbad));
        assert!(
            why.contains("damaged memory") && why.contains(&format!("{damaged:#x}")),
            "{}: {why}",
            shape(&config)
        );
        if config.kind == GuestKind::Kvm {
            let why = broken(&config, &|memory| memory.write(PAYLOAD, &[0x0f, 0x0b]).unwrap());
            assert!(why.contains("triple fault") && why.contains("0x100000"), "{why}");
            let why = broken(&config, &|memory| memory.write_u64(BOOT_BLOCK, 0));
            assert!(why.contains("boot block"), "{why}");
            // mov eax, [0xfec00000]: neither RAM nor, without interrupt controllers, a device.
            let why = broken(
                &GuestConfig {
                    irqchip: false,
                    ..config
                },
                &|memory| {
                    memory.write(PAYLOAD, &[0xb9, 0, 0, 0xc0, 0xfe, 0x8b, 0x01]).unwrap();
                },
            );
            assert!(
                why.contains("neither RAM nor a device") || why.contains("triple fault"),
                "{why}"
            );
        }
    }
}

#[test]
fn what_cannot_be_built_is_refused_with_a_reason() {
    let why = |change: &dyn Fn(&mut GuestConfig)| {
        let mut config = config(GuestKind::Thread, 1, "uniform", 1000);
        change(&mut config);
        match AnyGuest::create(config) {
            Ok(_) => panic!("it was built"),
            Err(error) => error.to_string(),
        }
    };
    assert!(why(&|config| config.memory = Bytes(0)).contains("memory"));
    assert!(why(&|config| config.memory = Bytes(u64::MAX)).contains("memory"));
    assert!(why(&|config| config.memory = Bytes(16 * MIB + 1)).contains("multiple"));
    assert!(why(&|config| config.vcpus = 0).contains("vCPU"));
    assert!(why(&|config| config.vcpus = 5).contains("vCPU"));
    assert!(why(&|config| config.workload = "nonsense".into()).contains("workload"));
    assert!(why(&|config| config.workload = "seq,ws=17MiB".into()).contains("working set"));
    assert!(why(&|config| config.steps = Some(0)).contains("--steps"));
}
