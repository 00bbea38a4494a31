//! The program of Linux guests: does a workload, says five times a second that it lives, and checks on demand that all it wrote is as
//! it left it. See `linux` of `dunlin-tests`, which starts it; stdin and stdout are a serial port of the guest.

mod compile;
mod load;
mod memcached;
mod pages;
mod runs;
mod stress;

use std::io::{self, BufRead as _, Write as _};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use dunlin_tests::linux::line::{Beat, CHECK, Intact, Line, SPOIL};

use compile::Compile;
use load::{Fault, Idle, Load};
use memcached::Memcached;
use pages::Pages;
use stress::Stress;

/// Between two signs of life.
const PERIOD: Duration = Duration::from_millis(200);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut beats = Beats::default();
    let fault = match load(&words) {
        Ok(mut load) => match serve(load.as_mut(), &mut beats) {
            Ok(never) => match never {},
            Err(fault) => fault,
        },
        Err(error) => error.into(),
    };
    say(&match fault {
        Fault::Corrupt(why) => Line::Corrupt(why),
        Fault::Failed(why) => Line::Failed(format!("{why:#}").replace('\n', "; ")),
    })?;
    // The guest stays as it is, for whoever wants to look at it.
    loop {
        thread::park();
    }
}

/// The workload of these arguments.
fn load(words: &[&str]) -> anyhow::Result<Box<dyn Load>> {
    Ok(match words {
        ["pages", spec, fill] => Box::new(Pages::new(spec, fill)?),
        ["idle"] => Box::new(Idle::default()),
        ["memcached", values, rate] => Box::new(Memcached::new(values, rate)?),
        ["compile"] => Box::new(Compile::new()?),
        ["stress-vm", mebibytes] => Box::new(Stress::new(mebibytes)?),
        _ => bail!("there is no workload `{}`", words.join(" ")),
    })
}

enum Never {}

/// Works, beats and obeys until something is wrong.
fn serve(load: &mut dyn Load, beats: &mut Beats) -> Result<Never, Fault> {
    let commands = commands();
    let mut next = Instant::now();
    loop {
        load.work(next)?;
        if Instant::now() >= next {
            beats.beat(load.steps())?;
            // A guest that stood still is not to beat in a hurry afterwards.
            next = (next + PERIOD).max(Instant::now());
        }
        for command in commands.try_iter() {
            match command.as_str() {
                CHECK => {
                    let pages = load.check()?;
                    let steps = load.steps();
                    say(&Line::Intact(Intact { pages, steps }))?;
                }
                SPOIL => load.spoil(),
                _ => return Err(anyhow::anyhow!("unknown command `{command}`").into()),
            }
        }
    }
}

/// Lines from stdin, as they come.
fn commands() -> Receiver<String> {
    let (sender, commands) = mpsc::channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let _ = sender.send(line.trim().to_owned());
        }
    });
    commands
}

fn say(line: &Line) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let said = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    said.context("cannot write to the serial port")
}

/// Signs of life.
#[derive(Default)]
struct Beats {
    seq: u64,
    steps: u64,
    at: Option<Instant>,
}

impl Beats {
    fn beat(&mut self, steps: u64) -> anyhow::Result<()> {
        let now = Instant::now();
        let elapsed_us = self.at.map_or(0, |at| (now - at).as_micros().max(1));
        let done = u128::from(steps.saturating_sub(self.steps));
        let per_s = (done * 1_000_000).checked_div(elapsed_us).unwrap_or(0);
        self.seq += 1;
        (self.steps, self.at) = (steps, Some(now));
        let clock = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        say(&Line::Beat(Beat {
            seq: self.seq,
            steps,
            per_s: u64::try_from(per_s).unwrap_or(u64::MAX),
            monotonic_ms: clock.tv_sec.unsigned_abs() * 1000 + clock.tv_nsec.unsigned_abs() / 1_000_000,
        }))
    }
}
