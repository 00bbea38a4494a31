//! Post-copy, whose connection breaks: made again, with growing pauses, for as long as it takes.
//!
//! qapi/migration.json of QEMU 7.2: the target, paused, is told where to listen anew (`migrate-recover`, out of band, because its main loop
//! may wait for a page), then the source is told to go there (`migrate` with `resume`).

use std::time::{Duration, Instant};

use dunlin_core::steer::Backoff;
use dunlin_core::units::Bytes;
use serde_json::json;

use super::link::Link;
use super::{Info, Phase, Plan, QmpError};

/// A network that has just failed may fail again at once, and QEMU before 9.1 does not get over that in the middle of its handshake: the first
/// attempt waits.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// A handshake that takes longer than this will not end by itself, before QEMU 9.1.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// What is done about a connection.
#[derive(Debug)]
pub(super) struct Recovery {
    /// Where the target listens, and how the source gets there.
    places: Vec<(String, String)>,
    /// A connection on which nothing has moved for so long, although there is more to move, is taken for broken.
    silence: Duration,
    backoff: Backoff,
    next_attempt: Option<Instant>,
    made: u32,
    /// How much was sent, when it last became more.
    moved: (Bytes, Instant),
    was_paused: bool,
    /// Since when QEMU talks about going on.
    handshake: Option<Instant>,
    warned: bool,
}

impl Recovery {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut places: Vec<_> = plan.recover.iter().map(|uri| (uri.clone(), uri.clone())).collect();
        if places.is_empty() {
            places.push((plan.incoming().to_owned(), plan.uri.clone()));
        }
        Self {
            places,
            silence: plan.network_timeout,
            backoff: Backoff::new(),
            next_attempt: None,
            made: 0,
            moved: (Bytes::ZERO, Instant::now()),
            was_paused: false,
            handshake: None,
            warned: false,
        }
    }

    /// How often it was made again.
    pub(super) const fn made(&self) -> u32 {
        self.made
    }

    /// In post-copy: does what is to be done now, and says what that was.
    pub(super) fn attend(&mut self, info: &Info, source: &Link, target: &Link) -> Vec<String> {
        match info.phase {
            Phase::PostCopy => self.watch(info, source),
            Phase::Paused => self.attempt(source, target),
            Phase::Recovering => self.wait(),
            _ => vec![],
        }
    }

    fn watch(&mut self, info: &Info, source: &Link) -> Vec<String> {
        let mut said = vec![];
        if self.was_paused {
            (self.was_paused, self.backoff, self.handshake) = (false, Backoff::new(), None);
            self.made += 1;
            said.push("the connection is there again".into());
        }
        let now = Instant::now();
        if info.transferred != self.moved.0 || info.remaining.0 == 0 {
            self.moved = (info.transferred, now);
        } else if now.saturating_duration_since(self.moved.1) >= self.silence {
            self.moved.1 = now;
            // Where it is refused, it is being noticed at this moment.
            let paused = source.execute_out_of_band("migrate-pause", &json!({}));
            let seconds = self.silence.as_secs();
            said.push(match paused {
                Ok(_) => format!("nothing has arrived for {seconds} s: the connection is given up, to be made again"),
                Err(error) => {
                    format!("nothing has arrived for {seconds} s, and the connection cannot be given up: {error}")
                }
            });
        }
        said
    }

    fn wait(&mut self) -> Vec<String> {
        self.was_paused = true;
        let since = *self.handshake.get_or_insert_with(Instant::now);
        if self.warned || since.elapsed() < HANDSHAKE {
            return vec![];
        }
        self.warned = true;
        vec![format!(
            "QEMU has been in the handshake for {} s; if the connection broke in it, versions before 9.1 do not get on by themselves, nor by \
             any command: the guest waits, and needs both, so end neither",
            HANDSHAKE.as_secs()
        )]
    }

    fn attempt(&mut self, source: &Link, target: &Link) -> Vec<String> {
        self.moved.1 = Instant::now();
        let mut said = vec![];
        self.handshake = None;
        if !self.was_paused {
            self.was_paused = true;
            self.next_attempt = Some(Instant::now() + FIRST_WAIT);
            said.push("the connection broke in post-copy; the guest waits for what is missing".into());
        }
        if self.next_attempt.is_some_and(|at| Instant::now() < at) {
            return said;
        }
        let (listen, uri) = &self.places[self.backoff.attempts() as usize % self.places.len()];
        let wait = Duration::from_nanos(self.backoff.next().0);
        self.next_attempt = Some(Instant::now() + wait);
        let attempt = self.backoff.attempts();
        let result = listen_again(listen, target).and_then(|()| {
            source
                .execute("migrate", &json!({ "uri": uri, "resume": true }))
                .map(drop)
        });
        said.push(match result {
            Ok(()) => format!("attempt {attempt} to connect again, by {uri}"),
            Err(error) => format!(
                "attempt {attempt} to connect again, by {uri}: {error}; the next one in {} s",
                wait.as_secs()
            ),
        });
        said
    }
}

fn listen_again(listen: &str, target: &Link) -> Result<(), QmpError> {
    // It may not have noticed yet.
    match target.execute_out_of_band("migrate-pause", &json!({})) {
        Ok(_) | Err(QmpError::Refused { .. }) => {}
        Err(error) => return Err(error),
    }
    target
        .execute_out_of_band("migrate-recover", &json!({ "uri": listen }))
        .map(drop)
}
