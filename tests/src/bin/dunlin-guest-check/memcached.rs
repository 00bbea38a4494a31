//! A memcached on this machine, and its only client.
//!
//! Protocol: memcached's doc/protocol.txt, the text protocol.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dunlin_core::workload::Random;

use crate::load::{Fault, Load};

const PORT: u16 = 11_211;
/// Bytes of a value.
const VALUE: usize = 1024;
/// Requests on their way at a time.
const BATCH: u32 = 16;
/// Of so many requests, one gets.
const ONE_GETS: u64 = 5;
/// How long the server may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Server and client.
pub(crate) struct Memcached {
    server: Child,
    client: BufReader<TcpStream>,
    /// How often each value was set; 0: not yet.
    versions: Vec<u32>,
    random: Random,
    /// The next value that is set for the first time.
    next: u32,
    requests: u64,
    /// How long a batch takes; nothing if there is no hurry to be held back.
    period: Duration,
    /// When the next batch may start.
    due: Instant,
}

/// What a request is to do to a value.
#[derive(Clone, Copy)]
enum Request {
    Set(u32),
    Get(u32),
}

impl Memcached {
    pub(crate) fn new(values: &str, rate: &str) -> anyhow::Result<Self> {
        let (values, rate): (u32, u32) = (values.parse()?, rate.parse()?);
        ensure!(values > 0, "no values");
        // Room for what a value needs beside its bytes, too, so that none is ever given up.
        let mebibytes = ((u64::from(values) * (VALUE as u64 * 3 / 2)) >> 20) + 16;
        let mut server = Command::new("memcached")
            .args(["-u", "root", "-t", "1", "-l", "127.0.0.1"])
            .args(["-p", &PORT.to_string(), "-m", &mebibytes.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start memcached")?;
        let deadline = Instant::now() + PATIENCE;
        let client = loop {
            match TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)) {
                Ok(client) => break client,
                Err(error) => {
                    let ended = server.try_wait()?;
                    ensure!(ended.is_none(), "memcached ended at once ({ended:?})");
                    ensure!(Instant::now() < deadline, "memcached does not listen: {error}");
                }
            }
            thread::sleep(Duration::from_millis(20));
        };
        client.set_nodelay(true)?;
        Ok(Self {
            server,
            client: BufReader::new(client),
            versions: vec![0; values as usize],
            random: Random::new(1, 0),
            next: 0,
            requests: 0,
            period: Duration::from_secs(BATCH.into()).checked_div(rate).unwrap_or_default(),
            due: Instant::now(),
        })
    }

    /// First every value is set once, as fast as possible, then any.
    fn next_request(&mut self) -> Request {
        let values = self.versions.len() as u32;
        if self.next < values {
            self.next += 1;
            return Request::Set(self.next - 1);
        }
        let key = self.random.below(u64::from(values)) as u32;
        match self.random.below(ONE_GETS) {
            0 => Request::Get(key),
            _ => Request::Set(key),
        }
    }

    /// Sends the requests together, then reads the answers.
    fn carry_out(&mut self, requests: &[Request]) -> Result<(), Fault> {
        let mut bytes = Vec::with_capacity(requests.len() * (VALUE + 64));
        let mut versions = Vec::with_capacity(requests.len());
        for request in requests {
            match *request {
                Request::Set(key) => {
                    let version = &mut self.versions[key as usize];
                    *version = version.wrapping_add(1).max(1);
                    write!(bytes, "set {key} 0 0 {VALUE}\r\n")?;
                    bytes.extend_from_slice(&value(key, *version));
                    bytes.extend_from_slice(b"\r\n");
                }
                Request::Get(key) => write!(bytes, "get {key}\r\n")?,
            }
            let (Request::Set(key) | Request::Get(key)) = *request;
            versions.push(self.versions[key as usize]);
        }
        self.client.get_mut().write_all(&bytes)?;
        for (request, version) in requests.iter().zip(versions) {
            match *request {
                Request::Set(_) => {
                    let line = self.line()?;
                    if line != "STORED" {
                        return Err(anyhow::anyhow!("memcached does not store: {line}").into());
                    }
                }
                Request::Get(key) => self.expect_value(key, version)?,
            }
        }
        Ok(())
    }

    fn expect_value(&mut self, key: u32, version: u32) -> Result<(), Fault> {
        let header = self.line()?;
        if header != format!("VALUE {key} 0 {VALUE}") {
            return Err(Fault::Corrupt(format!("value={key} is not there: `{header}`")));
        }
        let mut found = [0; VALUE + 2];
        self.client.read_exact(&mut found)?;
        if found[..VALUE] != value(key, version) {
            return Err(Fault::Corrupt(format!(
                "value={key} is not as it was set the {version}th time"
            )));
        }
        match self.line()?.as_str() {
            "END" => Ok(()),
            other => Err(anyhow::anyhow!("memcached answers `{other}`").into()),
        }
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.client.read_line(&mut line)? == 0 {
            bail!("memcached has closed the connection ({:?})", self.server.try_wait());
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Load for Memcached {
    fn work(&mut self, until: Instant) -> Result<(), Fault> {
        loop {
            let now = Instant::now();
            if now >= until {
                return Ok(());
            }
            if self.next as usize == self.versions.len() {
                if self.due > now {
                    thread::sleep(self.due.min(until) - now);
                    continue;
                }
                // What was lost by standing still stays lost.
                self.due = self.due.max(now - self.period) + self.period;
            }
            let requests: Vec<Request> = (0..BATCH).map(|_| self.next_request()).collect();
            self.carry_out(&requests)?;
            self.requests += requests.len() as u64;
        }
    }

    fn steps(&self) -> u64 {
        self.requests
    }

    fn check(&mut self) -> Result<u64, Fault> {
        let keys = (0..).zip(&self.versions);
        let set = keys
            .filter(|(_, version)| **version > 0)
            .map(|(key, _)| Request::Get(key));
        let requests: Vec<Request> = set.collect();
        for batch in requests.chunks(BATCH as usize) {
            self.carry_out(batch)?;
        }
        Ok(requests.len() as u64)
    }
}

/// The bytes of a value: different for every key and every time it is set.
fn value(key: u32, version: u32) -> [u8; VALUE] {
    let mut random = Random::new(u64::from(key) << 32 | u64::from(version), 0);
    let mut bytes = [0; VALUE];
    for word in bytes.as_chunks_mut::<8>().0 {
        *word = random.below(u64::MAX).to_le_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn values_differ() {
        assert_ne!(value(1, 1), value(1, 2));
        assert_ne!(value(1, 1), value(2, 1));
        assert_eq!(value(3, 4), value(3, 4));
    }
}
