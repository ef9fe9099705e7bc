use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rsa::pkcs1::EncodeRsaPrivateKey as _;
use serde_json::{Value, json};
use stepwell_core::Name;
use stepwell_http_trigger::{
    Auth, FetchError, HttpTrigger, KeyFetcher, KeySource, KeyTimes, Subject, TokenVerifier,
    Unavailable, usable_keys,
};
use stepwell_pipeline::{Dispatcher, HttpAuth, JwtIssuer};

use super::{Reply, deployment, inspect, post, send, spec, steps};

const ISSUER: &str = "https://issuer.example/";
const AUDIENCE: &str = "stepwell";

/// What comes before the seed of an Ed25519 key in PKCS#8.
const ED25519: [u8; 16] = [
    0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
];

/// A key of the issuer.
struct Signer {
    id: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Signer {
    fn ec(id: &'static str) -> Self {
        Self::new(id, Algorithm::ES256, &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    fn new(
        id: &'static str,
        algorithm: Algorithm,
        kind: &'static rcgen::SignatureAlgorithm,
    ) -> Self {
        let pair = rcgen::KeyPair::generate_for(kind).unwrap();
        let der = pair.serialize_der();
        let key = match algorithm {
            // The bare seed: not everybody reads the longer form, which has the public key too.
            Algorithm::EdDSA => {
                let mut short = ED25519.to_vec();
                short.extend_from_slice(&der[16..48]);
                EncodingKey::from_ed_der(&short)
            }
            _ => EncodingKey::from_ec_der(&der),
        };
        Self { id, algorithm, key }
    }

    /// One RSA key for all tests: making them takes a while.
    fn rsa(id: &'static str, algorithm: Algorithm) -> Self {
        static KEY: OnceLock<Vec<u8>> = OnceLock::new();
        let der = KEY.get_or_init(|| {
            let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
            key.to_pkcs1_der().unwrap().as_bytes().to_vec()
        });
        let key = EncodingKey::from_rsa_der(der);
        Self { id, algorithm, key }
    }

    fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.id.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.to_owned());
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }
}

fn set(keys: &[&Signer]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| key.jwk()).collect();
    json!({ "keys": keys }).to_string()
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap().as_secs()
}

/// Good claims with these changes.
fn claims(changes: Value) -> Value {
    let mut claims = json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "somebody", "exp": now() + 300});
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

/// What the issuer serves, and how often it was asked.
#[derive(Default)]
struct Issuer {
    set: Mutex<Option<String>>,
    asked: AtomicUsize,
    sources: Mutex<Vec<KeySource>>,
    slow: Mutex<Duration>,
}

#[async_trait]
impl KeyFetcher for Issuer {
    async fn fetch(&self, source: &KeySource) -> Result<Bytes, FetchError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.sources.lock().unwrap().push(source.clone());
        let slow = *self.slow.lock().unwrap();
        tokio::time::sleep(slow).await;
        let set = self.set.lock().unwrap().clone();
        set.map(Bytes::from)
            .ok_or_else(|| FetchError("it is down".to_owned()))
    }
}

impl Issuer {
    fn serving(keys: &[&Signer]) -> Arc<Self> {
        let issuer = Arc::new(Self::default());
        issuer.serve(keys);
        issuer
    }

    fn serve(&self, keys: &[&Signer]) {
        *self.set.lock().unwrap() = Some(set(keys));
    }

    fn go_down(&self) {
        *self.set.lock().unwrap() = None;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

struct NoTokens;

#[async_trait]
impl TokenVerifier for NoTokens {
    async fn verify(&self, _: &str, _: &Name) -> Result<Option<Subject>, Unavailable> {
        Ok(None)
    }
}

const JWKS: &str = "https://issuer.example/keys";

fn whose() -> JwtIssuer {
    JwtIssuer {
        issuer: ISSUER.to_owned(),
        audience: AUDIENCE.to_owned(),
        jwks: JWKS.to_owned(),
    }
}

fn trigger_of(issuer: &Arc<Issuer>, auth: HttpAuth, times: KeyTimes) -> HttpTrigger {
    let mut spec = spec("POST", "/p");
    spec.auth = auth;
    let auth = Auth::new(Arc::new(NoTokens), Some(&whose()), issuer.clone(), times);
    let trigger = HttpTrigger::with_auth(Dispatcher::new(8), auth);
    trigger.apply(&[deployment(spec, 1, steps(vec![inspect()]))]);
    trigger
}

fn operators(issuer: &Arc<Issuer>) -> HttpTrigger {
    trigger_of(issuer, HttpAuth::Jwt, KeyTimes::default())
}

async fn call(trigger: &HttpTrigger, token: &str) -> Reply {
    let request = post("/p").header("authorization", format!("Bearer {token}"));
    send(trigger, request, "").await
}

#[track_caller]
fn refused(reply: &Reply, why: &str) {
    reply.assert_problem(401, "unauthorized");
    let challenge = reply.header("www-authenticate").unwrap();
    assert!(
        challenge.contains("error=\"invalid_token\"") && challenge.contains(why),
        "{why}: {challenge}"
    );
}

#[tokio::test]
async fn good_tokens_of_every_algorithm_are_taken() {
    let signers = [
        Signer::ec("es256"),
        Signer::new("es384", Algorithm::ES384, &rcgen::PKCS_ECDSA_P384_SHA384),
        Signer::new("ed", Algorithm::EdDSA, &rcgen::PKCS_ED25519),
        Signer::rsa("rs256", Algorithm::RS256),
        Signer::rsa("ps384", Algorithm::PS384),
    ];
    let issuer = Issuer::serving(&signers.each_ref());
    for auth in [HttpAuth::Jwt, HttpAuth::OwnJwt(whose())] {
        let trigger = trigger_of(&issuer, auth, KeyTimes::default());
        for signer in &signers {
            let token = signer.sign(&claims(json!({})));
            // The second time it is remembered.
            for _ in 0..2 {
                let reply = call(&trigger, &token).await;
                assert_eq!(reply.status, 200, "{}", signer.id);
                assert_eq!(reply.json()["extensions"]["httpauthsubject"], "somebody");
            }
        }
    }
    let sources = issuer.sources.lock().unwrap();
    assert!(sources.contains(&KeySource::Operator(JWKS.to_owned())));
    let deployers = KeySource::Deployer {
        namespace: Name::default_namespace(),
        url: JWKS.to_owned(),
    };
    assert!(sources.contains(&deployers));
}

#[tokio::test]
async fn times_issuers_and_audiences_must_be_right() {
    let signer = Signer::ec("a");
    let trigger = operators(&Issuer::serving(&[&signer]));
    for good in [
        json!({"exp": now() - 30}),
        json!({"nbf": now() + 30}),
        json!({"aud": ["other", AUDIENCE]}),
        json!({"sub": null}),
        json!({"exp": (now() + 100) as f64 + 0.5}),
    ] {
        let reply = call(&trigger, &signer.sign(&claims(good.clone()))).await;
        assert_eq!(reply.status, 200, "{good}");
    }
    for (bad, why) in [
        (json!({"exp": now() - 90}), "has expired"),
        (json!({"exp": "tomorrow"}), "not valid"),
        (json!({"exp": null}), "not valid"),
        (json!({"nbf": now() + 90}), "not valid yet"),
        (json!({"nbf": "soon"}), "not valid"),
        (json!({"iss": "https://evil.example/"}), "another issuer"),
        (json!({"iss": null}), "lacks"),
        (json!({"iss": 7}), "lacks"),
        (json!({"aud": "other"}), "another audience"),
        (json!({"aud": []}), "audience"),
        (json!({"aud": null}), "lacks"),
        (json!({"sub": "a\r\nset-cookie: b"}), "subject"),
        (json!({"sub": "x".repeat(300)}), "subject"),
        (json!({"sub": 7}), "not valid"),
    ] {
        let reply = call(&trigger, &signer.sign(&claims(bad.clone()))).await;
        assert_eq!(reply.status, 401, "{bad}");
        refused(&reply, why);
    }
}

#[tokio::test]
async fn forged_tokens_are_refused() {
    let (signer, rsa) = (Signer::ec("a"), Signer::rsa("r", Algorithm::RS256));
    let issuer = Issuer::serving(&[&signer, &rsa]);
    let trigger = operators(&issuer);
    let good = claims(json!({}));
    // Another's key under the issuer's id.
    let other = Signer::ec("a");
    refused(&call(&trigger, &other.sign(&good)).await, "signature");
    // Changed after it was signed.
    let token = signer.sign(&good);
    let [head, _, signature] = *token.split('.').collect::<Vec<_>>() else {
        panic!("{token}");
    };
    let changed = URL_SAFE_NO_PAD.encode(claims(json!({"sub": "root"})).to_string());
    refused(
        &call(&trigger, &format!("{head}.{changed}.{signature}")).await,
        "signature",
    );
    // No signature at all.
    for alg in ["none", "None", "NONE"] {
        let head = URL_SAFE_NO_PAD.encode(json!({"alg": alg, "kid": "a"}).to_string());
        let body = URL_SAFE_NO_PAD.encode(good.to_string());
        refused(
            &call(&trigger, &format!("{head}.{body}.")).await,
            "not a signed",
        );
    }
    // The public key, which everybody has, as the secret of a signature that needs one.
    for (id, member) in [("r", "n"), ("a", "x")] {
        let jwk = if id == "r" { rsa.jwk() } else { signer.jwk() };
        let public = jwk[member].as_str().unwrap();
        for secret in [
            public.as_bytes().to_vec(),
            URL_SAFE_NO_PAD.decode(public).unwrap(),
        ] {
            let mut header = Header::new(Algorithm::HS256);
            header.kid = Some(id.to_owned());
            let key = EncodingKey::from_secret(&secret);
            let token = jsonwebtoken::encode(&header, &good, &key).unwrap();
            refused(&call(&trigger, &token).await, "algorithm");
        }
    }
    // A key of the issuer's, for another algorithm.
    let confused = Signer {
        id: "r",
        algorithm: Algorithm::ES256,
        key: other.key,
    };
    refused(&call(&trigger, &confused.sign(&good)).await, "algorithm");
    // Headers that would have us look elsewhere for a key, and extensions that must be understood.
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some("a".to_owned());
    header.jku = Some("https://evil.example/keys".to_owned());
    header.crit = Some(vec!["exp".to_owned()]);
    let token = jsonwebtoken::encode(&header, &good, &signer.key).unwrap();
    refused(&call(&trigger, &token).await, "extension");
    for nonsense in ["x", "..", "a.b.c", "e30.e30.e30", &"x.".repeat(2_000)] {
        refused(&call(&trigger, nonsense).await, "not a signed");
    }
    refused(&call(&trigger, &"x".repeat(100_000)).await, "too long");
    assert_eq!(
        issuer.asked(),
        1,
        "nothing of this had the keys fetched again"
    );
}

#[tokio::test]
async fn a_rotated_key_is_found_and_a_made_up_one_asked_for_once_in_a_while() {
    let (old, new) = (Signer::ec("old"), Signer::ec("new"));
    let issuer = Issuer::serving(&[&old]);
    let times = KeyTimes {
        pause: Duration::from_millis(300),
        ..KeyTimes::default()
    };
    let trigger = trigger_of(&issuer, HttpAuth::Jwt, times);
    let (of_old, of_new) = (old.sign(&claims(json!({}))), new.sign(&claims(json!({}))));
    assert_eq!(call(&trigger, &of_old).await.status, 200);
    assert_eq!(issuer.asked(), 1);
    issuer.serve(&[&new]);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(call(&trigger, &of_new).await.status, 200);
    assert_eq!(issuer.asked(), 2);
    // What was withdrawn is good no more, remembered or not.
    refused(&call(&trigger, &of_old).await, "not known");
    let began = Instant::now();
    for n in 0..200 {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(format!("made-up-{n}"));
        let token = jsonwebtoken::encode(&header, &claims(json!({})), &old.key).unwrap();
        refused(&call(&trigger, &token).await, "not known");
    }
    let most = 3 + usize::try_from(began.elapsed().as_millis() / 300).unwrap();
    assert!(issuer.asked() <= most, "{} of {most}", issuer.asked());
    assert_eq!(call(&trigger, &of_new).await.status, 200);
}

#[tokio::test]
async fn a_remembered_token_does_not_keep_its_withdrawn_key_in_use() {
    let (old, new) = (Signer::ec("old"), Signer::ec("new"));
    let issuer = Issuer::serving(&[&old]);
    let times = KeyTimes {
        fresh: Duration::from_millis(50),
        pause: Duration::from_millis(50),
        ..KeyTimes::default()
    };
    let trigger = trigger_of(&issuer, HttpAuth::Jwt, times);
    let token = old.sign(&claims(json!({})));
    assert_eq!(call(&trigger, &token).await.status, 200);
    issuer.serve(&[&new]);
    let deadline = Instant::now() + Duration::from_secs(10);
    let last = loop {
        let reply = call(&trigger, &token).await;
        if reply.status != 200 {
            break reply;
        }
        assert!(Instant::now() < deadline, "the old key goes on for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    refused(&last, "not known");
}

#[tokio::test]
async fn keys_of_an_issuer_that_is_away_go_on_for_a_while() {
    let signer = Signer::ec("a");
    let issuer = Issuer::serving(&[&signer]);
    let times = KeyTimes {
        fresh: Duration::ZERO,
        stale: Duration::from_millis(1_500),
        pause: Duration::from_millis(50),
    };
    let trigger = trigger_of(&issuer, HttpAuth::Jwt, times);
    let token = signer.sign(&claims(json!({})));
    assert_eq!(call(&trigger, &token).await.status, 200);
    issuer.go_down();
    tokio::time::sleep(Duration::from_millis(200)).await;
    // It is asked again, behind the requests, and the old keys do meanwhile.
    let another = signer.sign(&claims(json!({"sub": "another"})));
    assert_eq!(call(&trigger, &another).await.status, 200);
    let deadline = Instant::now() + Duration::from_secs(10);
    let last = loop {
        let reply = call(&trigger, &token).await;
        if reply.status != 200 {
            break reply;
        }
        assert!(Instant::now() < deadline, "old keys go on for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    last.assert_problem(503, "unavailable");
    issuer.serve(&[&signer]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(call(&trigger, &token).await.status, 200);
}

#[tokio::test]
async fn many_requests_wait_for_one_attempt() {
    let signer = Signer::ec("a");
    let issuer = Issuer::serving(&[&signer]);
    *issuer.slow.lock().unwrap() = Duration::from_millis(200);
    let trigger = Arc::new(operators(&issuer));
    let calls: Vec<_> = (0..20)
        .map(|n| {
            let token = signer.sign(&claims(json!({"sub": format!("caller-{n}")})));
            let trigger = trigger.clone();
            tokio::spawn(async move { call(&trigger, &token).await.status })
        })
        .collect();
    for call in calls {
        // At most as many permits as there are: the others are told to come again, and not that they are unknown.
        assert!(matches!(call.await.unwrap(), 200 | 429));
    }
    assert_eq!(issuer.asked(), 1);
}

#[test]
fn only_keys_that_prove_something_are_taken() {
    let good = Signer::ec("a");
    let mut encryption = good.jwk();
    encryption["use"] = json!("enc");
    let mut short = Signer::rsa("r", Algorithm::RS256).jwk();
    short["n"] = json!(URL_SAFE_NO_PAD.encode([0xff; 128]));
    let mut endless = short.clone();
    endless["n"] = json!(URL_SAFE_NO_PAD.encode(vec![0xff; 100_000]));
    let secret = json!({"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"});
    let unknown = json!({"kty": "AKP", "alg": "ML-DSA-44", "pub": "x"});
    let bad = [encryption, short, endless, secret, unknown, json!(7)];
    for key in &bad {
        let set = json!({"keys": [key]}).to_string();
        assert!(usable_keys(set.as_bytes()).is_err(), "{set}");
        // Beside a good one they do no harm.
        let set = json!({"keys": [key, good.jwk()]}).to_string();
        assert_eq!(usable_keys(set.as_bytes()).unwrap(), 1, "{set}");
    }
    for nothing in ["", "{}", "[]", "{\"keys\": []}", "{\"keys\": {}}", "<html>"] {
        assert!(usable_keys(nothing.as_bytes()).is_err(), "{nothing}");
    }
}
