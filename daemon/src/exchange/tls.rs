//! TLS 1.3 between nodes of one mesh: raw public keys (RFC 7250), both ends show the Ed25519 key that follows from
//! the mesh's secret, and each takes no other. Which node it is, TLS does not say.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key,
};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use tokio_rustls::rustls::server::AlwaysResolvesServerRawPublicKeys;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::sign::{CertifiedKey, SigningKey};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerIncompatible, ServerConfig, SignatureScheme,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use wgmesh_core::exchange::{EXPORTER_LABEL, Target};
use zeroize::Zeroizing;

use super::Stream;

/// The protocol that both ends must name (RFC 7301).
const PROTOCOL: &[u8] = b"wgmesh/1";

/// What stands before the 32 bytes of an Ed25519 private key in PKCS #8 (RFC 8410 §7).
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Both ends of TLS for one mesh.
pub(super) struct Tls {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

impl Tls {
    /// Makes them of the seed of the mesh's key.
    pub(super) fn new(seed: &[u8; 32]) -> Self {
        let (private, public) = key_pair(seed);
        Self::of(private, &public, public.clone())
    }

    /// Makes them of a node's key and the one that it takes from others.
    fn of(
        private: Arc<dyn SigningKey>,
        own: &SubjectPublicKeyInfoDer<'_>,
        taken: SubjectPublicKeyInfoDer<'static>,
    ) -> Self {
        let provider = Arc::new(provider());
        let algorithms = provider.signature_verification_algorithms;
        let verifier = Arc::new(SameKey { public: taken, algorithms });
        let own = Arc::new(CertifiedKey::new(vec![CertificateDer::from(own.to_vec())], private));
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .expect("the provider speaks TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<_>)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::clone(&own))));
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("the provider speaks TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(own)));
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        server.send_tls13_tickets = 0;
        Self { connector: Arc::new(client).into(), acceptor: Arc::new(server).into() }
    }

    /// Does TLS as the one who dialed.
    pub(super) async fn connect(&self, socket: TcpStream, target: Target) -> io::Result<Stream> {
        let name = ServerName::IpAddress(target.address.ip().into());
        let tls = self.connector.connect(name, socket).await?;
        finish(tls.into(), target.address, Some(target))
    }

    /// Does TLS as the one who was dialed.
    pub(super) async fn accept(&self, socket: TcpStream, remote: SocketAddr) -> io::Result<Stream> {
        let tls = self.acceptor.accept(socket).await?;
        finish(tls.into(), remote, None)
    }
}

fn key_pair(seed: &[u8; 32]) -> (Arc<dyn SigningKey>, SubjectPublicKeyInfoDer<'static>) {
    let private = Zeroizing::new([PKCS8_HEAD.as_slice(), seed].concat());
    let private = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(private.as_slice()))
        .expect("any 32 bytes are an Ed25519 key");
    let public = private.public_key().expect("a private key has a public one").into_owned();
    (private, public)
}

fn finish(tls: TlsStream<TcpStream>, remote: SocketAddr, dialed: Option<Target>) -> io::Result<Stream> {
    let (_, connection) = tls.get_ref();
    if connection.alpn_protocol() != Some(PROTOCOL) {
        return Err(io::Error::other("the other side speaks another protocol"));
    }
    let exporter = match &tls {
        TlsStream::Client(tls) => tls.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, None),
        TlsStream::Server(tls) => tls.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, None),
    };
    let exporter = exporter.map_err(io::Error::other)?;
    Ok(Stream { tls, remote, dialed, exporter })
}

/// X25519 and the ciphers of TLS 1.3: both ends are ours, so there is nothing else to agree on.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.kx_groups = vec![ring::kx_group::X25519];
    provider.cipher_suites.retain(|suite| {
        matches!(
            suite.suite(),
            CipherSuite::TLS13_AES_128_GCM_SHA256 | CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        )
    });
    provider
}

/// Puts an error of a stream into words for an operator.
pub(super) fn explain(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        Some(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) => {
            "the other side has another secret".to_owned()
        }
        Some(Error::AlertReceived(_)) => "the other side refused: another secret or version?".to_owned(),
        Some(
            Error::InvalidMessage(_)
            | Error::PeerIncompatible(PeerIncompatible::SupportedVersionsExtensionRequired),
        ) => "the other side does not speak our TLS".to_owned(),
        _ if error.kind() == io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        _ => error.to_string(),
    }
}

/// Takes exactly the mesh's own key.
#[derive(Debug)]
struct SameKey {
    public: SubjectPublicKeyInfoDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl SameKey {
    fn check(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        match **shown == *self.public {
            true => Ok(()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check(shown)?;
        verify_tls13_signature_with_raw_key(message, &self.public, signature, &self.algorithms)
    }
}

/// What both sides of TLS ask of the other's signature, each by a trait of its own.
macro_rules! signed_by_a_raw_key_in_tls13 {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(PeerIncompatible::Tls12NotOffered.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.verify(message, cert, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for SameKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    signed_by_a_raw_key_in_tls13!();
}

impl ClientCertVerifier for SameKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    signed_by_a_raw_key_in_tls13!();
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Makes the ends of one who knows a mesh's public key, but has another private one.
    pub(in super::super) fn impostor(seed: &[u8; 32]) -> Tls {
        let (private, own) = key_pair(&[9; 32]);
        Tls::of(private, &own, key_pair(seed).1)
    }

    #[test]
    fn a_seed_gives_one_key() {
        assert_eq!(key_pair(&[1; 32]).1, key_pair(&[1; 32]).1);
        assert_ne!(key_pair(&[1; 32]).1, key_pair(&[2; 32]).1);
    }

    #[test]
    fn only_what_both_ends_need_is_offered() {
        let provider = provider();
        assert_eq!((provider.kx_groups.len(), provider.cipher_suites.len()), (1, 2));
    }
}
