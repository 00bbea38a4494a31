//! Dunlin's bare-metal guest: the workload generators of `dunlin-core` and nothing else.
//!
//! The host puts a vCPU into long mode at the entry point, with its index in rdi, memory mapped one to one, interrupts
//! off and zeroed RAM in which it has written page tables, this payload and a boot block. What lies where, and which
//! I/O ports mean what, is in [`dunlin_core::workload::layout`].
//!
//! Nothing here reads a clock: the host paces the guest by not returning from the pacing port before it is time. After
//! N steps RAM must depend on the boot block alone, so before it halts a vCPU clears what depends on how it got there:
//! its stack, the state of the log, its mailbox.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(
    not(target_os = "none"),
    expect(dead_code, reason = "elsewhere than on bare metal it is only checked, never run")
)]

mod agent;
mod log;
mod machine;

use dunlin_core::workload::layout::{HALT_BOOT, HALT_DONE, HALT_STAMP, PORT_PACE};
use dunlin_core::workload::{
    BootBlock, BootError, Milli, Pattern, Phase, PlanError, Progress, Runner, StampErrorKind, State,
};
use machine::{Ram, out32};

/// How a vCPU ends: what it tells the host, and the state that its progress line then shows.
struct Halt {
    code: u32,
    state: State,
}

/// All that a vCPU does, from its entry to its halt.
fn run(vcpu: u32) -> Halt {
    let end = match start(vcpu) {
        Some((boot, mut runner)) => work(vcpu, &boot, &mut runner),
        None => Halt {
            code: HALT_BOOT,
            state: State::BadBoot,
        },
    };
    machine::clear_mailbox(vcpu);
    log::clear();
    end
}

/// Reads the boot block and prepares the first step.
fn start(vcpu: u32) -> Option<(BootBlock, Runner)> {
    let boot = match BootBlock::decode(machine::boot_block()) {
        Ok(boot) => boot,
        Err(error) => {
            defmt::error!("vCPU {=u32}: boot block: {=str}", vcpu, describe_boot(error));
            return None;
        }
    };
    match Runner::new(&boot, vcpu) {
        Ok(runner) => {
            defmt::info!(
                "vCPU {=u32} of {=u32}: {=u64} steps (0: endless), {=u64} pages of working set, seed {=u64:#x}",
                vcpu,
                boot.vcpus,
                boot.steps,
                runner.plan().ws().0,
                boot.seed
            );
            if vcpu == 0 {
                boot.spec.phases().iter().for_each(log_phase);
            }
            Some((boot, runner))
        }
        Err(error) => {
            defmt::error!(
                "vCPU {=u32}: the workload does not fit: {=str}",
                vcpu,
                describe_plan(error)
            );
            None
        }
    }
}

/// Does all steps, batch after batch, and tells the host after each.
fn work(vcpu: u32, boot: &BootBlock, runner: &mut Runner) -> Halt {
    let mut ram = Ram;
    Progress {
        state: State::Running,
        ..Progress::default()
    }
    .write(vcpu, &mut ram);
    let mut phase = runner.phase_index();
    let mut agent = agent::Line::new(boot, runner.plan(), vcpu);
    while !runner.finished() {
        match runner.run_batch(&mut ram) {
            Ok(steps) => {
                out32(PORT_PACE, steps);
                if let Some(agent) = &mut agent {
                    agent.attend();
                }
            }
            Err(error) => {
                defmt::error!(
                    "vCPU {=u32}: step {=u64}: page {=u64:#x} is {=str}: {=u64:#x} instead of {=u64:#x}",
                    vcpu,
                    runner.steps(),
                    error.gfn.0,
                    describe_stamp(error.kind),
                    error.found,
                    error.expected
                );
                return Halt {
                    code: HALT_STAMP,
                    state: State::StampError,
                };
            }
        }
        if phase != runner.phase_index() {
            phase = runner.phase_index();
            defmt::info!(
                "vCPU {=u32}: phase {=usize} from step {=u64} on",
                vcpu,
                phase,
                runner.steps()
            );
        }
    }
    runner.settle(&mut ram);
    Halt {
        code: HALT_DONE,
        state: State::Done,
    }
}

fn log_phase(phase: &Phase) {
    let (name, Milli(argument)) = match phase.pattern {
        Pattern::Idle => ("idle", Milli(0)),
        Pattern::Seq => ("seq", Milli(0)),
        Pattern::Uniform => ("uniform", Milli(0)),
        Pattern::Zipf(exponent) => ("zipf", exponent),
        Pattern::Hotset(fraction) => ("hotset", fraction),
        Pattern::Lmbench => ("lmbench", Milli(0)),
        Pattern::Memcached => ("memcached", Milli(0)),
        Pattern::Kernel => ("kernel", Milli(0)),
        Pattern::Shared(fraction) => ("shared", fraction),
    };
    defmt::info!(
        "phase: {=str}, argument {=u16}/1000, {=u32} steps/s (0: unpaced), {=u64} steps (0: endless)",
        name,
        argument,
        phase.rate,
        phase.steps
    );
}

fn describe_boot(error: BootError) -> &'static str {
    match error {
        BootError::Short => "too short",
        BootError::NotABootBlock => "there is none",
        BootError::Version { .. } => "of another version",
        BootError::Checksum => "wrong checksum",
        BootError::Field { .. } => "a field has no meaning",
    }
}

fn describe_plan(error: PlanError) -> &'static str {
    match error {
        PlanError::Vcpus { .. } => "number of vCPUs",
        PlanError::NoSuchVcpu { .. } => "this vCPU is not in the boot block",
        PlanError::Unaligned { .. } => "memory is not made of whole pages",
        PlanError::MemoryTooSmall { .. } => "memory too small",
        PlanError::MemoryTooLarge { .. } => "memory too large",
        PlanError::WorkingSetTooLarge { .. } => "working set too large",
        PlanError::WorkingSetTooSmall { .. } => "working set too small",
        PlanError::PhaseTooLarge { .. } => "working set of a phase too large",
    }
}

fn describe_stamp(kind: StampErrorKind) -> &'static str {
    match kind {
        StampErrorKind::Stale => "stale",
        StampErrorKind::Torn => "torn",
        StampErrorKind::Swapped => "swapped",
        StampErrorKind::Corrupt => "corrupt",
    }
}

/// Anywhere else than on bare metal there is nothing to run.
#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!("microguest runs on bare metal only: build it with `cargo xtask build`, run it with `dunlin guest`");
    std::process::ExitCode::from(2)
}
