//! Real handshakes between two ends, good ones and each bad one.

use super::{
    Admission, Binding, Files, Name, TrustError, Visit,
    credentials::{AUTHORITY, CERTIFICATE, KEY, REVOKED},
    pki,
};
use crate::channel::{Cancel, ChannelError, FrameReceiver, FrameSender, Stream, TokenBucket, Wait, first_message};
use dunlin_core::message::{Message, Refusal, SessionId};
use rcgen::{
    CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber, date_time_ymd,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(20);
const ID: SessionId = SessionId(7);

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// An authority with hosts `a` and `b`.
struct Hosts {
    folder: tempfile::TempDir,
}

impl Hosts {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        pki::init(folder.path()).unwrap();
        for host in ["a", "b"] {
            pki::issue(folder.path(), &name(host), 30).unwrap();
        }
        Self { folder }
    }

    fn directory(&self, host: &str) -> PathBuf {
        self.folder.path().join(host)
    }

    fn files(&self, host: &str) -> Files {
        Files::new(self.directory(host))
    }

    fn visit(&self, expected: &str) -> Visit {
        Visit::new(self.files("a"), name(expected), ID)
    }

    fn guard(&self) -> Admission {
        Admission::new(self.files("b"))
    }

    /// Gives a host another certificate by the same authority.
    fn reissue(&self, host: &str, change: impl FnOnce(&mut CertificateParams)) {
        let read = |file: &str| fs::read_to_string(self.folder.path().join(file)).unwrap();
        let key = KeyPair::from_pem(&read("ca-key.pem")).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read(AUTHORITY), key).unwrap();
        let mut about = CertificateParams::default();
        about.subject_alt_names = vec![SanType::DnsName(host.try_into().unwrap())];
        about.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        about.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        about.serial_number = Some(SerialNumber::from_slice(&[1, 2, 3]));
        change(&mut about);
        let key = KeyPair::generate().unwrap();
        let certificate = about.signed_by(&key, &issuer).unwrap();
        fs::write(self.directory(host).join(CERTIFICATE), certificate.pem()).unwrap();
        write_key(&self.directory(host).join(KEY), &key.serialize_pem());
    }
}

fn write_key(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

type Ends = (Result<Stream, ChannelError>, Result<Stream, ChannelError>);

/// Both ends of a new connection, each done by its own function at the same time.
fn meet(
    near: impl FnOnce(Stream, Wait<'_>) -> Result<Stream, ChannelError> + Send,
    far: impl FnOnce(Stream, Wait<'_>) -> Result<Stream, ChannelError> + Send,
) -> Ends {
    let cancel = Cancel::new();
    let wait = Wait::within(PATIENCE, &cancel);
    let (left, right) = Stream::pair().unwrap();
    thread::scope(|scope| {
        let far = scope.spawn(move || far(right, wait));
        (near(left, wait), far.join().unwrap())
    })
}

fn enter(visit: &Visit, guard: &Admission) -> Ends {
    meet(
        |stream, wait| visit.enter(stream, wait),
        |stream, wait| guard.admit(stream, wait),
    )
}

fn both(ends: Ends) -> (Stream, Stream) {
    (ends.0.unwrap(), ends.1.unwrap())
}

fn why(end: Result<Stream, ChannelError>) -> TrustError {
    match end {
        Err(ChannelError::Trust { source, .. }) => *source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn both_ends_know_each_other_and_share_a_session() {
    let hosts = Hosts::new();
    let (visit, guard) = (hosts.visit("b"), hosts.guard());
    let (near, far) = both(enter(&visit, &guard));
    let (to, from) = (near.trusted().unwrap(), far.trusted().unwrap());
    assert_eq!((to.peer.name(), from.peer.name()), (&name("b"), &name("a")));
    assert!(to.begins(ID) && from.begins(ID) && !from.joined(ID));
    let (one, other) = (to.session().unwrap(), from.session().unwrap());
    assert_eq!(one.key("storage"), other.key("storage"));
    assert_ne!(one.key("storage"), one.key("audit"));

    let (later, far_later) = both(enter(&visit, &guard));
    assert!(later.trusted().unwrap().joined(ID) && far_later.trusted().unwrap().joined(ID));
    let again = Arc::clone(far_later.trusted().unwrap().session().unwrap());
    assert!(Arc::ptr_eq(&again, other));
    let debug = format!("{near:?} {far:?}");
    assert!(!debug.contains("secret"), "{debug}");
}

#[test]
fn the_exporter_is_that_of_rustls() {
    let hosts = Hosts::new();
    let credentials = hosts.files("a").load().unwrap();
    let theirs = hosts.files("b").load().unwrap();
    let (near, exported) = meet_buffered(&credentials, &theirs);
    let own = near.export(b"context");
    assert_eq!(own, exported);
    assert_ne!(own, near.export(b"another"));
}

/// What an end that rustls buffers itself exports, and the means to ask our own end for the same.
struct Near(Arc<super::exporter::Exporter>, rustls::SupportedCipherSuite);

impl Near {
    fn export(&self, context: &[u8]) -> [u8; 32] {
        *self.0.export(self.1, "EXPORTER-test", context).unwrap()
    }
}

fn meet_buffered(ours: &super::Credentials, theirs: &super::Credentials) -> (Near, [u8; 32]) {
    use rustls::{ServerConfig, ServerConnection, version::TLS13};
    let judge = super::verify::Judge::new(Arc::clone(&theirs.authorities), None);
    let config = ServerConfig::builder_with_provider(Arc::clone(&theirs.provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(judge))
        .with_cert_resolver(Arc::clone(&theirs.own) as Arc<_>);
    let mut server = ServerConnection::new(Arc::new(config)).unwrap();
    let (left, right) = std::os::unix::net::UnixStream::pair().unwrap();
    let left = Stream::from_unix(left, "the server").unwrap();
    thread::scope(|scope| {
        let far = scope.spawn(move || {
            let mut socket = right;
            while server.is_handshaking() {
                server.complete_io(&mut socket).unwrap();
            }
            server
                .export_keying_material([0; 32], b"EXPORTER-test", Some(b"context"))
                .unwrap()
        });
        let cancel = Cancel::new();
        let wait = Wait::within(PATIENCE, &cancel);
        let (stream, exporter, _) = ours.connect(left, &name("b"), wait).unwrap();
        let suite = stream.secured().unwrap().suite().unwrap();
        (Near(exporter, suite), far.join().unwrap())
    })
}

#[test]
fn nobody_else_joins_a_session() {
    let hosts = Hosts::new();
    pki::issue(hosts.folder.path(), &name("m"), 30).unwrap();
    let (visit, guard) = (hosts.visit("b"), hosts.guard());
    let (_near, _far) = both(enter(&visit, &guard));

    // Another host of the same authority, which took part in a session of this name elsewhere.
    let other_guard = hosts.guard();
    let mallory = Visit::new(hosts.files("m"), name("b"), ID);
    both(enter(&mallory, &other_guard));
    let (near, far) = enter(&mallory, &guard);
    assert!(matches!(why(far), TrustError::Stranger { name } if name.as_str() == "m"));
    assert!(matches!(why(near), TrustError::TurnedAway));

    // The same host, but another process of it: the certificate alone is not enough.
    let twin = hosts.visit("b");
    both(enter(&twin, &hosts.guard()));
    let (near, far) = enter(&twin, &guard);
    assert!(matches!(why(far), TrustError::Stranger { name } if name.as_str() == "a"));
    assert!(matches!(why(near), TrustError::TurnedAway));

    // Nor can it begin one of the same name.
    let (near, far) = enter(&hosts.visit("b"), &guard);
    assert!(matches!(why(far), TrustError::SessionTaken { .. }));
    assert!(matches!(why(near), TrustError::TurnedAway));

    // The right one still can.
    both(enter(&visit, &guard));
}

#[test]
fn a_target_that_knows_nothing_says_so_and_is_not_believed_more() {
    let hosts = Hosts::new();
    let visit = hosts.visit("b");
    {
        let (_near, _far) = both(enter(&visit, &hosts.guard()));
    }
    let (near, far) = both(enter(&visit, &hosts.guard()));
    for end in [&near, &far] {
        let trusted = end.trusted().unwrap();
        assert!(matches!(trusted.binding, Binding::Unknown(ID)) && trusted.session().is_none());
        assert!(trusted.misses(ID) && !trusted.joined(ID) && !trusted.begins(ID));
    }
}

#[test]
fn a_session_lasts_as_long_as_somebody_holds_it() {
    let hosts = Hosts::new();
    let (visit, guard) = (hosts.visit("b"), hosts.guard());
    let (_near, far) = both(enter(&visit, &guard));
    let held = Arc::clone(far.trusted().unwrap().session().unwrap());
    drop(far);
    let (_near, far) = both(enter(&visit, &guard));
    assert!(far.trusted().unwrap().joined(ID));
    drop((far, held));
    let (_near, far) = both(enter(&visit, &guard));
    assert!(far.trusted().unwrap().misses(ID));
}

#[test]
fn a_target_of_another_name_gets_nothing() {
    let hosts = Hosts::new();
    let (near, far) = enter(&hosts.visit("c"), &hosts.guard());
    let refused = why(near);
    assert!(
        matches!(&refused, TrustError::WrongName { expected, found } if expected.as_str() == "c" && found == "b"),
        "{refused}"
    );
    assert!(matches!(why(far), TrustError::Refused(_)));
}

/// Runs handshakes in which the certificate of `b` (as target), then that of `a` (as source) is bad; both sides must say so.
fn refused_on_both_sides(change: impl Fn(&mut CertificateParams), is_right: impl Fn(&TrustError) -> bool, alert: &str) {
    for bad in ["a", "b"] {
        let hosts = Hosts::new();
        // Loaded while it was good: what the other side finds must not hang on what this side finds of itself.
        let (near, far) = (hosts.files("a").load().unwrap(), hosts.files("b").load().unwrap());
        hosts.reissue(bad, &change);
        let own = hosts.files(bad).load().unwrap_err();
        assert!(
            matches!(&own, TrustError::Own { source, .. } if is_right(source)),
            "{own:?}"
        );
        let bad_own = reload(&hosts, bad);
        let (near, far) = if bad == "a" {
            (with(near, bad_own), far)
        } else {
            (near, with(far, bad_own))
        };
        let (near, far) = meet(
            |stream, wait| {
                let (stream, ..) = near.connect(stream, &name("b"), wait)?;
                // A source learns of its own certificate's fate when it listens.
                stream.read_exact(&mut [0], wait).map(|()| stream)
            },
            |stream, wait| far.accept(stream, wait).map(|(stream, ..)| stream),
        );
        let (judge, judged) = if bad == "a" { (far, near) } else { (near, far) };
        let (judge, judged) = (why(judge), why(judged));
        assert!(is_right(&judge), "{bad}: {judge:?}");
        assert!(judged.to_string().contains(alert), "{bad}: {judged}");
    }
}

/// Certificate and key of a host without a look at whether they are any good.
fn reload(hosts: &Hosts, host: &str) -> Arc<rustls::sign::SingleCertAndKey> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let chain = CertificateDer::pem_file_iter(hosts.directory(host).join(CERTIFICATE)).unwrap();
    let key = PrivateKeyDer::from_pem_file(hosts.directory(host).join(KEY)).unwrap();
    let provider = rustls::crypto::ring::default_provider();
    let certified = rustls::sign::CertifiedKey::from_der(chain.map(Result::unwrap).collect(), key, &provider);
    Arc::new(certified.unwrap().into())
}

fn with(mut credentials: super::Credentials, own: Arc<rustls::sign::SingleCertAndKey>) -> super::Credentials {
    credentials.own = own;
    credentials
}

#[test]
fn expired_certificates_are_refused_with_both_times() {
    let past = |about: &mut CertificateParams| {
        about.not_before = date_time_ymd(2001, 1, 1);
        about.not_after = date_time_ymd(2002, 2, 3);
    };
    let is_right = |error: &TrustError| {
        let text = error.to_string();
        matches!(error, TrustError::Expired { .. }) && text.contains("2002-02-03T00:00:00Z") && text.contains("clock")
    };
    refused_on_both_sides(past, is_right, "clocks");
}

#[test]
fn certificates_of_the_future_are_refused_with_both_times() {
    let future = |about: &mut CertificateParams| {
        about.not_before = date_time_ymd(3001, 1, 1);
        about.not_after = date_time_ymd(3002, 2, 3);
    };
    let is_right = |error: &TrustError| {
        let text = error.to_string();
        matches!(error, TrustError::NotYetValid { .. })
            && text.contains("3001-01-01T00:00:00Z")
            && text.contains("late")
    };
    refused_on_both_sides(future, is_right, "clocks");
}

#[test]
fn certificates_without_names_or_for_other_uses_are_refused() {
    refused_on_both_sides(
        |about| about.subject_alt_names.clear(),
        |error| matches!(error, TrustError::Nameless),
        "names somebody else",
    );
    refused_on_both_sides(
        |about| about.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
        |error| matches!(error, TrustError::Purpose),
        "",
    );
    refused_on_both_sides(
        |about| about.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained),
        |error| matches!(error, TrustError::Invalid(_)),
        "",
    );
}

#[test]
fn revoked_certificates_are_refused_from_the_next_connection_on() {
    for bad in ["a", "b"] {
        let hosts = Hosts::new();
        let (near, far) = (hosts.files("a").load().unwrap(), hosts.files("b").load().unwrap());
        pki::revoke(
            hosts.folder.path(),
            hosts.directory(bad).join(CERTIFICATE).to_str().unwrap(),
        )
        .unwrap();
        let (near, far) = match bad {
            // Who has not got the list yet still believes in himself.
            "a" => (near, hosts.files("b").load().unwrap()),
            _ => (hosts.files("a").load().unwrap(), far),
        };
        let (near, far) = meet(
            |stream, wait| {
                let (stream, ..) = near.connect(stream, &name("b"), wait)?;
                stream.read_exact(&mut [0], wait).map(|()| stream)
            },
            |stream, wait| far.accept(stream, wait).map(|(stream, ..)| stream),
        );
        let (judge, judged) = if bad == "a" { (far, near) } else { (near, far) };
        assert!(matches!(why(judge), TrustError::Revoked), "{bad}");
        assert!(why(judged).to_string().contains("revoked"), "{bad}");
    }
}

#[test]
fn other_authorities_and_self_signed_certificates_are_refused() {
    let (hosts, others) = (Hosts::new(), Hosts::new());
    let (near, far) = enter(&Visit::new(others.files("a"), name("b"), ID), &hosts.guard());
    assert!(matches!(why(near), TrustError::UnknownAuthority));
    assert!(why(far).to_string().contains("another authority"));

    // A source that believes the target, but has signed for itself.
    let own = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
    fs::write(hosts.directory("a").join(CERTIFICATE), own.cert.pem()).unwrap();
    write_key(&hosts.directory("a").join(KEY), &own.signing_key.serialize_pem());
    let refused = hosts.files("a").load().unwrap_err();
    assert!(
        matches!(&refused, TrustError::Own { source, .. } if matches!(**source, TrustError::UnknownAuthority)),
        "{refused:?}"
    );
    let near = with(Hosts::files(&hosts, "b").load().unwrap(), reload(&hosts, "a"));
    let (near, far) = meet(
        |stream, wait| {
            let (stream, ..) = near.connect(stream, &name("b"), wait)?;
            stream.read_exact(&mut [0], wait).map(|()| stream)
        },
        |stream, wait| hosts.guard().admit(stream, wait),
    );
    assert!(matches!(why(far), TrustError::UnknownAuthority));
    assert!(why(near).to_string().contains("another authority"));
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    use rustls::{ClientConfig, ClientConnection, version::TLS13};
    let hosts = Hosts::new();
    let credentials = hosts.files("a").load().unwrap();
    let judge = super::verify::Judge::new(Arc::clone(&credentials.authorities), None);
    let config = ClientConfig::builder_with_provider(Arc::clone(&credentials.provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(judge))
        .with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), "b".try_into().unwrap()).unwrap();
    let (left, right) = std::os::unix::net::UnixStream::pair().unwrap();
    let right = Stream::from_unix(right, "the client").unwrap();
    let cancel = Cancel::new();
    let wait = Wait::within(PATIENCE, &cancel);
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut socket = left;
            // Until the alert.
            while client.complete_io(&mut socket).is_ok_and(|(read, _)| read > 0) {}
        });
        assert!(matches!(
            why(hosts.guard().admit(right, wait)),
            TrustError::NoCertificate
        ));
    });
}

#[test]
fn one_side_in_plain_is_told_so_on_both() {
    let hosts = Hosts::new();
    let frames = |stream: Stream| {
        let stream = Arc::new(stream);
        let receiver = FrameReceiver::new(Arc::clone(&stream), PATIENCE, Cancel::new());
        (
            FrameSender::new(stream, TokenBucket::new(None), Arc::default()),
            receiver,
        )
    };
    let plain = |stream: Stream, wait: Wait<'_>, speaks: bool| {
        let (mut sender, mut receiver) = frames(stream);
        if speaks {
            sender.message(&Message::Attach { session: ID }, wait).unwrap();
        }
        let heard = first_message(&mut receiver, PATIENCE).map(|message| panic!("{message:?}"));
        if !speaks {
            sender.message(&Message::Refused(Refusal::NotHello), wait).unwrap();
        }
        match heard {
            Err(crate::channel::FrameError::Channel(error)) => Err(error),
            other => panic!("{other:?}"),
        }
    };
    let (near, far) = meet(
        |stream, wait| plain(stream, wait, true),
        |stream, wait| hosts.guard().admit(stream, wait),
    );
    assert!(matches!(why(near), TrustError::PlainHere));
    assert!(matches!(why(far), TrustError::PlainPeer));
    let (near, far) = meet(
        |stream, wait| hosts.visit("b").enter(stream, wait),
        |stream, wait| plain(stream, wait, false),
    );
    assert!(matches!(why(near), TrustError::PlainPeer));
    assert!(matches!(why(far), TrustError::PlainHere));
}

#[test]
fn files_are_named_with_what_is_wrong_with_them() {
    let load = |change: &dyn Fn(&Path)| {
        let hosts = Hosts::new();
        change(&hosts.directory("a"));
        hosts
            .files("a")
            .load()
            .map(|credentials| credentials.holder().to_string())
    };
    assert_eq!(load(&|_| {}).unwrap(), "a");
    assert_eq!(load(&|host| fs::remove_file(host.join(REVOKED)).unwrap()).unwrap(), "a");
    for file in [AUTHORITY, CERTIFICATE, KEY] {
        let error = load(&|host| fs::remove_file(host.join(file)).unwrap()).unwrap_err();
        assert!(
            matches!(&error, TrustError::File { path, .. } if path.ends_with(file)),
            "{error}"
        );
    }
    for file in [AUTHORITY, CERTIFICATE, KEY, REVOKED] {
        for content in [
            "",
            "nonsense",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            let error = load(&|host| fs::write(host.join(file), content).unwrap()).unwrap_err();
            let is_named = match &error {
                TrustError::Content { path, .. } => path.ends_with(file),
                TrustError::Own { path, source } => path.ends_with(file) && matches!(**source, TrustError::Malformed),
                _ => false,
            };
            assert!(is_named, "{file} {content:?}: {error}");
        }
    }
    let open = load(&|host| fs::set_permissions(host.join(KEY), PermissionsExt::from_mode(0o640)).unwrap());
    let open = open.unwrap_err().to_string();
    assert!(open.contains("chmod 600") && open.contains("640"), "{open}");
    let other = KeyPair::generate().unwrap().serialize_pem();
    let error = load(&|host| write_key(&host.join(KEY), &other)).unwrap_err();
    assert!(matches!(error, TrustError::KeyMismatch { .. }), "{error}");
}

#[test]
fn a_list_of_another_authority_or_of_the_past_is_no_list() {
    let (hosts, others) = (Hosts::new(), Hosts::new());
    fs::copy(others.directory("a").join(REVOKED), hosts.directory("a").join(REVOKED)).unwrap();
    let error = hosts.files("a").load().unwrap_err();
    assert!(
        matches!(&error, TrustError::Own { source, .. } if matches!(**source, TrustError::ForeignRevocations)),
        "{error:?}"
    );
}

#[test]
fn an_intermediate_authority_vouches_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    root.distinguished_name.push(rcgen::DnType::CommonName, "root");
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let mut middle = CertificateParams::default();
    middle.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    middle.distinguished_name.push(rcgen::DnType::CommonName, "middle");
    let middle = CertifiedIssuer::signed_by(middle, KeyPair::generate().unwrap(), &root).unwrap();
    let mut leaf = CertificateParams::new(["a".to_owned()]).unwrap();
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let leaf = leaf.signed_by(&key, &middle).unwrap();
    fs::write(folder.path().join(AUTHORITY), root.pem()).unwrap();
    write_key(&folder.path().join(KEY), &key.serialize_pem());
    fs::write(folder.path().join(CERTIFICATE), leaf.pem()).unwrap();
    assert!(
        Files::new(folder.path()).load().is_err(),
        "nobody knows the one in the middle"
    );
    fs::write(folder.path().join(CERTIFICATE), leaf.pem() + &middle.pem()).unwrap();
    assert_eq!(Files::new(folder.path()).load().unwrap().holder().name(), &name("a"));
}
