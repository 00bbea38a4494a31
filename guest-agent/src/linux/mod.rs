//! The agent in Linux: everything that it knows it reads in /proc and /sys.

mod cpu;
mod facts;
mod free_pages;
mod port;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use dunlin_agent::frame::{Decoder, ENCODED_MAX, encode};
use dunlin_agent::guest::{Agent, Guest};
use dunlin_agent::message::{Abilities, Facts, KERNEL_MAX, Notice, Refusal, SoftKind, ToGuest, Work};
use dunlin_core::pageset::Run;
use dunlin_core::units::Gfn;
use heapless::String;

use facts::FactsReader;
use free_pages::FreePages;
use port::Port;

/// The virtio-serial port that hosts know.
const PORT_NAME: &str = "org.dunlin.agent.0";
/// How long a host that has gone is waited for before it is looked whether it is back.
const ABSENCE: Duration = Duration::from_millis(500);

/// Runs in a guest, and tells whoever moves it which of its memory need not move
///
/// It is silent unless it is asked. A host asks over the virtio-serial port org.dunlin.agent.0: with QEMU,
/// -device virtio-serial -chardev socket,id=agent,path=SOCK,server=on,wait=off -device virtserialport,chardev=agent,name=org.dunlin.agent.0
#[derive(Debug, Parser)]
#[command(name = "dunlin-agent", version, max_term_width = 100)]
struct Args {
    /// The port, by its name or as a device file
    #[arg(long, value_name = "NAME|FILE", default_value = PORT_NAME)]
    port: std::string::String,

    /// Programs that are to know of migrations: each is run with the name of what happens, before-migration, after-migration or
    /// migration-given-up
    #[arg(long, value_name = "DIR", default_value = "/etc/dunlin/hooks.d")]
    hooks: PathBuf,

    /// Say on standard error what is asked and answered
    #[arg(long)]
    verbose: bool,
}

pub(crate) fn main() -> ExitCode {
    let args = Args::parse();
    let mut here = Here {
        free: FreePages::new(),
        facts: FactsReader::new(),
        hooks: args.hooks,
        verbose: args.verbose,
    };
    let mut told = false;
    loop {
        match Port::open(&args.port) {
            Ok(mut port) => {
                told = false;
                let ended = serve(&mut port, &mut here);
                if here.verbose {
                    eprintln!("dunlin-agent: the port: {ended}");
                }
            }
            Err(error) => {
                if !told {
                    eprintln!(
                        "dunlin-agent: {}: {error}; it is looked for until it is there",
                        args.port
                    );
                }
                told = true;
            }
        }
        std::thread::sleep(ABSENCE);
    }
}

/// As long as the port works. A host that disconnects is waited for.
fn serve(port: &mut Port, here: &mut Here) -> std::io::Error {
    let (mut agent, mut decoder) = (Agent::new(), Decoder::new());
    let mut buffer = [0; 4096];
    loop {
        // While there is something to say it only looks whether there is something to hear.
        let heard = match port.read(&mut buffer, !agent.is_busy()) {
            Ok(Some(0)) => {
                // Whoever asked has gone: nobody waits for answers.
                (agent, decoder) = (Agent::new(), Decoder::new());
                std::thread::sleep(ABSENCE);
                continue;
            }
            Ok(heard) => heard.unwrap_or(0),
            Err(error) => return error,
        };
        let mut bytes = &buffer[..heard];
        while !bytes.is_empty() {
            let (message, taken) = decoder.take::<ToGuest>(bytes);
            bytes = &bytes[taken..];
            if let Some(message) = message {
                if here.verbose {
                    eprintln!("dunlin-agent: {message:?}");
                }
                agent.on_message(&message, here);
            }
        }
        if let Some(message) = agent.next(here) {
            let mut frame = [0; ENCODED_MAX];
            match encode(&message, &mut frame) {
                Ok(bytes) => {
                    if let Err(error) = port.write(bytes) {
                        return error;
                    }
                }
                Err(error) => eprintln!("dunlin-agent: {error}"),
            }
        }
    }
}

/// The guest that it lives in.
struct Here {
    free: FreePages,
    facts: FactsReader,
    hooks: PathBuf,
    verbose: bool,
}

impl Guest for Here {
    fn abilities(&self) -> Abilities {
        let mut abilities = Abilities::FACTS | Abilities::HOOKS;
        abilities.set(Abilities::SOFT_PAGES, self.free.can());
        abilities.set(Abilities::CACHES, work::can_drop_caches());
        abilities.set(Abilities::BALLOON, facts::has_balloon());
        abilities
    }

    fn kernel(&self) -> String<KERNEL_MAX> {
        let name = rustix::system::uname();
        let text = format!("Linux {}", name.release().to_string_lossy());
        text.chars().filter(char::is_ascii).take(KERNEL_MAX).collect()
    }

    fn page_size(&self) -> u32 {
        rustix::param::page_size() as u32
    }

    fn begin_epoch(&mut self) -> Result<(), Refusal> {
        self.free.begin()
    }

    fn next_soft(&mut self, from: Gfn) -> Option<(Option<(Run, SoftKind)>, Gfn)> {
        self.free.next(from)
    }

    fn cpu_us(&self) -> u64 {
        cpu::used_us()
    }

    fn work(&mut self, notice: Notice, work: Work, timeout_ms: u32) -> (Work, Work) {
        work::carry_out(notice, work, Duration::from_millis(timeout_ms.into()), &self.hooks)
    }

    fn facts(&mut self) -> Facts {
        self.facts.read()
    }
}
