use super::*;
use dunlin::guest::{GuestError, Machine};

/// Moves a paused guest into a new one in this process.
fn moved(guest: AnyGuest) -> AnyGuest {
    let state = guest.save_state().unwrap();
    let target = AnyGuest::create_incoming(guest.config().clone(), guest.machine().clone()).unwrap();
    copy_all(guest.memory(), target.memory());
    drop(guest);
    target.restore_state(&state).unwrap();
    target
}

/// Stops, moves and goes on many times, at points that fall into computing as well as into sleeping and log output.
#[test]
fn a_guest_that_is_moved_ends_as_if_it_never_was() {
    let steps = 1300;
    for config in shapes("phases:(uniform)*300+(seq,rate=20000)*150", steps) {
        let mut guest = AnyGuest::create(config.clone()).unwrap();
        let total = steps * u64::from(config.vcpus);
        let moves = 12;
        for part in 0..moves {
            guest.resume().unwrap();
            // The first stop comes before anything was reported.
            wait_for_steps(&guest, total * part / moves);
            guest.pause().unwrap();
            let before = guest.progress();
            guest = moved(guest);
            let after = guest.progress();
            assert_eq!(after.steps(), before.steps());
            assert_eq!(after.state, before.state);
        }
        assert_eq!(finish(&guest), undisturbed(&config), "{}", shape(&config));
    }
}

#[test]
fn a_guest_that_has_ended_can_still_be_moved() {
    for config in shapes("seq", 100) {
        let guest = AnyGuest::create(config.clone()).unwrap();
        let digest = finish(&guest);
        let guest = moved(guest);
        assert!(guest.progress().all_halted());
        assert_eq!(finish(&guest), digest, "{}", shape(&config));
    }
}

/// A vCPU that is on its way to its end, or has just reached it beside one that has not.
#[test]
fn a_guest_can_be_moved_while_it_ends() {
    for config in shapes("seq", 100) {
        let expected = undisturbed(&config);
        for micros in (0..4000).step_by(500) {
            let guest = AnyGuest::create(config.clone()).unwrap();
            guest.resume().unwrap();
            wait_for_steps(&guest, 60);
            std::thread::sleep(Duration::from_micros(micros));
            guest.pause().unwrap();
            assert_eq!(finish(&moved(guest)), expected, "{}", shape(&config));
        }
    }
}

/// A state from the network may be anything: it is taken, or refused by name. Nothing panics.
#[test]
fn damaged_states_are_refused_by_name() {
    for config in shapes("uniform", 100_000) {
        let guest = AnyGuest::create(config.clone()).unwrap();
        guest.resume().unwrap();
        wait_for_steps(&guest, 100);
        assert!(matches!(guest.save_state(), Err(GuestError::NotPaused)));
        assert!(matches!(guest.restore_state(&[]), Err(GuestError::NotPaused)));
        guest.pause().unwrap();
        let state = guest.save_state().unwrap();
        let target = AnyGuest::create_incoming(config.clone(), guest.machine().clone()).unwrap();
        for cut in (0..state.len()).step_by(1 + state.len() / 500) {
            let error = target.restore_state(&state[..cut]).unwrap_err();
            assert!(matches!(error, GuestError::State(_)), "cut to {cut}: {error}");
        }
        let longer = [&state[..], &[0]].concat();
        assert!(matches!(target.restore_state(&longer), Err(GuestError::State(_))));
        let mut random = 1u64;
        for _ in 0..500 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let mut damaged = state.clone();
            let bit = (random >> 20) as usize % (state.len() * 8);
            damaged[bit / 8] ^= 1 << (bit % 8);
            if let Err(error) = target.restore_state(&damaged) {
                assert!(
                    matches!(error, GuestError::State(_) | GuestError::Vcpu { .. }),
                    "bit {bit}: {error}"
                );
            }
        }
        // After all that the right one is still taken.
        target.restore_state(&state).unwrap();
        let more = GuestConfig {
            vcpus: 3,
            ..config.clone()
        };
        let more = AnyGuest::create_incoming(more, guest.machine().clone()).unwrap();
        assert!(matches!(more.restore_state(&state), Err(GuestError::State(_))));
        if config.kind == GuestKind::Kvm {
            let other = GuestConfig {
                irqchip: !config.irqchip,
                ..config.clone()
            };
            let other = AnyGuest::create_incoming(other, guest.machine().clone()).unwrap();
            assert!(matches!(other.restore_state(&state), Err(GuestError::State(_))));
        }
    }
}

#[test]
fn a_machine_that_this_host_cannot_be_is_refused() {
    if !require(Capability::Kvm) {
        return;
    }
    let machine = AnyGuest::host_machine(GuestKind::Kvm).unwrap();
    let config = config(GuestKind::Kvm, 1, "uniform", 1000);
    assert!(AnyGuest::create_incoming(config.clone(), machine.clone()).is_ok());
    let other = Machine { tsc_khz: 1, ..machine };
    assert!(AnyGuest::create_incoming(config, other).is_err_and(|error| matches!(error, GuestError::Tsc { .. })));
}
