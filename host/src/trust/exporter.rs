//! Keys of a connection beside those that TLS uses itself: the exporter of RFC 8446, 7.5 (RFC 5705 for TLS 1.3).
//!
//! rustls computes this for its buffered connections only. For others it hands out the secret that it is computed from, as for a
//! log of keys; the computation is two steps of HKDF with the functions of rustls. A test compares it with rustls' own.

use rustls::{
    KeyLog, SupportedCipherSuite, Tls13CipherSuite,
    crypto::tls13::{HkdfExpander, OkmBlock},
};
use std::{
    fmt,
    sync::{Mutex, PoisonError},
};
use zeroize::Zeroizing;

/// The label of the secret (that of NSS' key logs).
const LOGGED: &str = "EXPORTER_SECRET";
/// Before every label of TLS 1.3 (RFC 8446, 7.1).
const PREFIX: &[u8] = b"tls13 ";

/// Takes the exporter's secret of one connection.
#[derive(Default)]
pub(super) struct Exporter(Mutex<Option<OkmBlock>>);

impl KeyLog for Exporter {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        if label == LOGGED {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(OkmBlock::new(secret));
        }
    }

    fn will_log(&self, label: &str) -> bool {
        label == LOGGED
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exporter")
    }
}

impl Exporter {
    /// Key material for `label` and `context` that both ends of the connection, and nobody else, can compute; `None` before the end
    /// of the handshake.
    pub(super) fn export(
        &self,
        suite: SupportedCipherSuite,
        label: &str,
        context: &[u8],
    ) -> Option<Zeroizing<[u8; 32]>> {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (secret, suite) = (guard.as_ref()?, suite.tls13()?);
        let hash = |bytes: &[u8]| suite.common.hash_provider.hash(bytes);
        let mut derived = Zeroizing::new(vec![0; suite.common.hash_provider.output_len()]);
        expand(suite, secret, label.as_bytes(), hash(b"").as_ref(), &mut derived)?;
        let mut exported = Zeroizing::new([0; 32]);
        let derived = OkmBlock::new(&derived);
        expand(suite, &derived, b"exporter", hash(context).as_ref(), &mut *exported)?;
        Some(exported)
    }
}

/// HKDF-Expand-Label of RFC 8446, 7.1. `None` if a length does not fit, which no caller's does.
fn expand(suite: &Tls13CipherSuite, secret: &OkmBlock, label: &[u8], context: &[u8], output: &mut [u8]) -> Option<()> {
    let expander: Box<dyn HkdfExpander> = suite.hkdf_provider.expander_for_okm(secret);
    let length = u16::try_from(output.len()).ok()?.to_be_bytes();
    let label_length = u8::try_from(PREFIX.len() + label.len()).ok()?;
    let context_length = u8::try_from(context.len()).ok()?;
    let info = [&length, &[label_length][..], PREFIX, label, &[context_length], context];
    expander.expand_slice(&info, output).ok()
}
