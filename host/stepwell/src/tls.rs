//! Certificates: read from files, and read again when these change.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::InconsistentKeys;
use rustls::pki_types::pem::{Error as PemError, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use stepwell_api::{Part, State};
use stepwell_http_trigger::{HandshakeLimits, Tls};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::input;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(3);

/// Bytes of a certificate's or a key's file.
const MAX_FILE: u64 = 1 << 20;

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The section that names them: `tls` or `admin_tls`.
    pub(crate) section: &'static str,
    /// The certificate and those above it, as PEM.
    pub(crate) certificate: PathBuf,
    /// Its private key, as PEM.
    pub(crate) key: PathBuf,
}

/// Which of the files is at fault, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TlsMistake {
    Certificate(String),
    Key(String),
}

impl TlsMistake {
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Certificate(reason) | Self::Key(reason) => reason,
        }
    }
}

/// What is in the files.
pub(crate) struct Loaded {
    pub(crate) certified: CertifiedKey,
    /// The end of the certificate's validity, where it can be read.
    pub(crate) expires: Option<OffsetDateTime>,
    text: Text,
}

type Text = (Vec<u8>, Vec<u8>);

impl TlsFiles {
    /// Reads both and checks that they belong together.
    pub(crate) fn load(&self) -> Result<Loaded, TlsMistake> {
        let text = self.text()?;
        let chain = CertificateDer::pem_slice_iter(&text.0)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| {
                TlsMistake::Certificate(format!("the certificate is no PEM: {error}"))
            })?;
        let Some(own) = chain.first() else {
            let reason = "there is no certificate in it: expected -----BEGIN CERTIFICATE-----";
            return Err(TlsMistake::Certificate(reason.to_owned()));
        };
        let expires = crate::validity::not_after(own);
        let key = PrivateKeyDer::from_pem_slice(&text.1).map_err(|error| {
            TlsMistake::Key(match error {
                PemError::NoItemsFound => {
                    "there is no private key in it: expected -----BEGIN PRIVATE KEY-----".to_owned()
                }
                error => format!("the key is no PEM: {error}"),
            })
        })?;
        let key = rustls::crypto::ring::sign::any_supported_type(&key)
            .map_err(|error| TlsMistake::Key(format!("the key cannot be used: {error}")))?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let reason = "the key does not belong to the certificate";
                return Err(TlsMistake::Key(reason.to_owned()));
            }
            Err(error) => {
                let reason = format!("the certificate cannot be used: {error}");
                return Err(TlsMistake::Certificate(reason));
            }
        }
        Ok(Loaded {
            certified,
            expires,
            text,
        })
    }

    fn text(&self) -> Result<Text, TlsMistake> {
        let read = |path: &PathBuf| input::read(path, MAX_FILE).map_err(|error| error.to_string());
        let certificate = read(&self.certificate).map_err(|error| {
            let path = self.certificate.display();
            TlsMistake::Certificate(format!("cannot read {path}: {error}"))
        })?;
        let key = read(&self.key).map_err(|error| {
            TlsMistake::Key(format!("cannot read {}: {error}", self.key.display()))
        })?;
        Ok((certificate, key))
    }
}

/// The TLS of one listener, with the certificate that its files hold now.
pub(crate) struct LiveTls {
    pub(crate) tls: Arc<Tls>,
    files: TlsFiles,
    state: Mutex<Known>,
}

struct Known {
    text: Text,
    expires: Option<OffsetDateTime>,
    /// Why what the files hold now is not used.
    trouble: Option<&'static str>,
}

impl LiveTls {
    /// TLS for a listener, `data` or `admin`.
    pub(crate) fn start(listener: &'static str, files: &TlsFiles) -> anyhow::Result<Arc<Self>> {
        let loaded = files.load().map_err(|mistake| {
            anyhow::anyhow!("[server.{}]: {}", files.section, mistake.reason())
        })?;
        let tls = Tls::new(listener, loaded.certified, HandshakeLimits::default())?;
        Ok(Arc::new(Self {
            tls: Arc::new(tls),
            files: files.clone(),
            state: Mutex::new(Known {
                text: loaded.text,
                expires: loaded.expires,
                trouble: None,
            }),
        }))
    }

    /// Looks at the files now and then until the host stops.
    pub(crate) async fn follow(self: Arc<Self>, stopping: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let live = self.clone();
            let _ = tokio::task::spawn_blocking(move || live.look()).await;
        }
    }

    /// Takes what the files hold, if it is new and right.
    fn look(&self) {
        let text = self.files.text();
        let mut known = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if text.as_ref().is_ok_and(|text| *text == known.text) {
            known.trouble = None;
            return;
        }
        let section = self.files.section;
        match self.files.load() {
            Ok(loaded) => {
                self.tls.replace(loaded.certified);
                *known = Known {
                    text: loaded.text,
                    expires: loaded.expires,
                    trouble: None,
                };
                tracing::info!(section, "a new certificate is in use");
            }
            Err(mistake) => {
                let trouble = match mistake {
                    TlsMistake::Certificate(_) => {
                        "the certificate's file has changed and cannot be used; the one before is still in use"
                    }
                    TlsMistake::Key(_) => {
                        "the key's file has changed and cannot be used; the certificate before is still in use"
                    }
                };
                if known.trouble != Some(trouble) {
                    let reason = mistake.reason();
                    tracing::warn!(
                        section,
                        reason,
                        "a new certificate cannot be used; the one before is still in use"
                    );
                }
                known.trouble = Some(trouble);
            }
        }
    }

    /// For `/readyz`, which everybody may read.
    pub(crate) fn part(&self) -> Part {
        let known = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let expired = known
            .expires
            .is_some_and(|expires| expires < OffsetDateTime::now_utc());
        let reason = known
            .trouble
            .or(expired.then_some("the certificate has expired"));
        Part {
            name: self.files.section.to_owned(),
            status: if reason.is_none() {
                State::Ok
            } else {
                State::Degraded
            },
            reason: reason.map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn write(directory: &Path, name: &str, days: i64) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = OffsetDateTime::now_utc() + time::Duration::days(days);
        let certificate = params.self_signed(&key).unwrap();
        let files = TlsFiles {
            section: "tls",
            certificate: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}.key")),
        };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    #[test]
    fn mistakes_name_the_file_that_is_at_fault() {
        let directory = tempfile::tempdir().unwrap();
        let files = write(directory.path(), "a", 30);
        let other = write(directory.path(), "b", 30);
        let loaded = files.load().map_err(|mistake| mistake.reason().to_owned());
        let left = loaded.unwrap().expires.unwrap() - OffsetDateTime::now_utc();
        assert!((29..=30).contains(&left.whole_days()), "{left}");
        let mistake = |certificate: &Path, key: &Path| {
            let files = TlsFiles {
                section: "tls",
                certificate: certificate.to_owned(),
                key: key.to_owned(),
            };
            files.load().err().unwrap()
        };
        let nothing = directory.path().join("nothing");
        let text = directory.path().join("text");
        std::fs::write(&text, "-----BEGIN NOTHING-----\n").unwrap();
        for (found, expected) in [
            (
                mistake(&nothing, &files.key),
                TlsMistake::Certificate("cannot read".into()),
            ),
            (
                mistake(&text, &files.key),
                TlsMistake::Certificate("certificate".into()),
            ),
            (
                mistake(&files.key, &files.key),
                TlsMistake::Certificate("BEGIN CERTIFICATE".into()),
            ),
            (
                mistake(&files.certificate, &nothing),
                TlsMistake::Key("cannot read".into()),
            ),
            (
                mistake(&files.certificate, &files.certificate),
                TlsMistake::Key("BEGIN PRIVATE KEY".into()),
            ),
            (
                mistake(&files.certificate, &other.key),
                TlsMistake::Key("does not belong".into()),
            ),
        ] {
            assert_eq!(
                std::mem::discriminant(&found),
                std::mem::discriminant(&expected),
                "{found:?}"
            );
            assert!(found.reason().contains(expected.reason()), "{found:?}");
        }
    }

    #[test]
    fn a_new_certificate_is_taken_and_a_broken_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let files = write(directory.path(), "a", 30);
        let live = LiveTls::start("data", &files).unwrap();
        assert_eq!(live.part().status, State::Ok);
        // The certificate comes first, its key a moment later.
        let other = write(directory.path(), "b", 60);
        std::fs::copy(&other.certificate, &files.certificate).unwrap();
        live.look();
        assert_eq!(live.part().status, State::Degraded);
        assert!(
            !live
                .part()
                .reason
                .unwrap()
                .contains(directory.path().to_str().unwrap())
        );
        std::fs::copy(&other.key, &files.key).unwrap();
        live.look();
        assert_eq!(live.part().status, State::Ok);
        let expires = live.state.lock().unwrap().expires.unwrap();
        assert!((expires - OffsetDateTime::now_utc()).whole_days() > 50);
        // What cannot be read any more is trouble, and gone when it is back.
        let away = directory.path().join("away");
        std::fs::rename(&files.key, &away).unwrap();
        live.look();
        assert_eq!(live.part().status, State::Degraded);
        std::fs::rename(&away, &files.key).unwrap();
        live.look();
        assert_eq!(live.part().status, State::Ok);
        let old = write(directory.path(), "c", -1);
        std::fs::copy(&old.certificate, &files.certificate).unwrap();
        std::fs::copy(&old.key, &files.key).unwrap();
        live.look();
        assert_eq!(
            live.part().reason.as_deref(),
            Some("the certificate has expired")
        );
    }
}
