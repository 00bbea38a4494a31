//! Post-copy, whose connection breaks: made again as [`Recovery`] says.
//!
//! qapi/migration.json of QEMU 7.2: the target, paused, is told where to listen anew (`migrate-recover`, out of band, because its main loop
//! may wait for a page), then the source is told to go there (`migrate` with `resume`).

use std::time::Instant;

use dunlin_core::steer::{Connection, Recovery, Remedy};
use dunlin_core::units::Nanos;
use serde_json::json;

use super::link::Link;
use super::plan::nanos;
use super::{Info, Phase, Plan, QmpError, Version};

/// From this version on a source gets over a connection that breaks in the middle of the handshake.
const ENDURES_HANDSHAKE: (u32, u32) = (9, 1);

/// Does what is to be done about a connection.
#[derive(Debug)]
pub(super) struct Reconnect {
    recovery: Recovery,
    began: Instant,
    /// Where the target listens, and how the source gets there.
    places: Vec<(String, String)>,
}

impl Reconnect {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut places: Vec<_> = plan.recover.iter().map(|uri| (uri.clone(), uri.clone())).collect();
        if places.is_empty() {
            places.push((plan.incoming().to_owned(), plan.uri.clone()));
        }
        Self {
            recovery: Recovery::new(places.len(), nanos(plan.network_timeout)),
            began: Instant::now(),
            places,
        }
    }

    /// How often it was made again.
    pub(super) const fn made(&self) -> u32 {
        self.recovery.made()
    }

    /// In post-copy: does what is to be done now, and says what that was.
    pub(super) fn attend(&mut self, info: &Info, source: &Link, target: &Link, version: Version) -> Option<String> {
        let connection = match info.phase {
            Phase::PostCopy => Connection::Open {
                sent: info.transferred,
                is_done: info.remaining.0 == 0,
            },
            Phase::Paused => Connection::Broken,
            Phase::Recovering => Connection::Handshake,
            _ => return None,
        };
        let seconds = |time: Nanos| time.0 / 1_000_000_000;
        match self.recovery.on_connection(connection, nanos(self.began.elapsed())) {
            Remedy::None => None,
            Remedy::Restored => Some("the connection is there again".into()),
            Remedy::Broke => Some("the connection broke in post-copy; the guest waits for what is missing".into()),
            Remedy::GiveUp { silent } => {
                let paused = source.execute_out_of_band("migrate-pause", &json!({}));
                let heard = format!("nothing has arrived for {} s", seconds(silent));
                Some(match paused {
                    Ok(_) => format!("{heard}: the connection is given up, to be made again"),
                    Err(error) => format!("{heard}, and the connection cannot be given up: {error}"),
                })
            }
            Remedy::Attempt { number, place, next_in } => {
                let (listen, uri) = &self.places[place];
                let attempt = format!("attempt {number} to connect again, by {uri}");
                Some(match connect(listen, uri, source, target) {
                    Ok(()) => attempt,
                    Err(error) => format!("{attempt}: {error}; the next one in {} s", seconds(next_in)),
                })
            }
            Remedy::Stuck { since } => Some(stuck(seconds(since), version)),
        }
    }
}

fn stuck(seconds: u64, version: Version) -> String {
    let so_far = format!("QEMU has been in the handshake for {seconds} s");
    if (version.major, version.minor) < ENDURES_HANDSHAKE {
        format!(
            "{so_far}; if the connection broke in it, QEMU {version} does not get on by itself, nor by any command: the guest waits, and \
             needs both, so end neither"
        )
    } else {
        format!("{so_far}; the guest waits, and needs both, so end neither")
    }
}

fn connect(listen: &str, uri: &str, source: &Link, target: &Link) -> Result<(), QmpError> {
    // It may not have noticed yet.
    match target.execute_out_of_band("migrate-pause", &json!({})) {
        Ok(_) | Err(QmpError::Refused { .. }) => {}
        Err(error) => return Err(error),
    }
    target.execute_out_of_band("migrate-recover", &json!({ "uri": listen }))?;
    source
        .execute("migrate", &json!({ "uri": uri, "resume": true }))
        .map(drop)
}
