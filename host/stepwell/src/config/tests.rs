use super::*;

fn parse_with(
    text: &str,
    environment: &[(&str, &str)],
    overrides: &Overrides,
) -> Result<Config, Vec<String>> {
    let lookup = |name: &str| {
        environment
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| (*value).to_owned())
    };
    Config::parse(Some("/etc/stepwell.toml".into()), text, overrides, &lookup)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

fn parse(text: &str) -> Result<Config, Vec<String>> {
    parse_with(text, &[], &Overrides::default())
}

#[test]
fn everything_has_a_default() {
    let config = parse("").unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.data_dir, Path::new("/etc/stepwell-data"));
    assert_eq!(config.kafka.brokers, Brokers::Embedded);
    assert_eq!(config.limits.concurrent_runs, 1024);
    assert_eq!(config.limits.guest_memory, None);
}

#[test]
fn the_memory_of_all_guests_is_a_size() {
    let config = parse("[limits]\nguest_memory = \"2GiB\"\n").unwrap();
    assert_eq!(config.limits.guest_memory, Some(2 << 30));
    let environment = [("STEPWELL_LIMITS_GUEST_MEMORY", "512MiB")];
    let config = parse_with("", &environment, &Overrides::default()).unwrap();
    assert_eq!(config.limits.guest_memory, Some(512 << 20));
    let mistakes = parse("[limits]\nguest_memory = 2\n").unwrap_err();
    assert!(mistakes[0].contains("guest_memory"), "{mistakes:?}");
}

#[test]
fn flags_win_over_environment_over_file() {
    let text =
        "[server]\nlisten = \"127.0.0.1:1\"\nadmin_listen = \"127.0.0.1:1\"\ndata_dir = \"a\"\n";
    let environment = [
        ("STEPWELL_SERVER_LISTEN", "127.0.0.1:2"),
        ("STEPWELL_SERVER_ADMIN_LISTEN", "127.0.0.1:2"),
    ];
    let overrides = Overrides {
        listen: Some("127.0.0.1:3".into()),
        ..Overrides::default()
    };
    let config = parse_with(text, &environment, &overrides).unwrap();
    assert_eq!(config.listen.port(), 3);
    assert_eq!(config.admin_listen.port(), 2);
    assert_eq!(config.data_dir, Path::new("/etc/a"));
}

#[test]
fn every_mistake_is_reported_with_its_place() {
    let text = "[server]\nlisten = \"here\"\nadmin_listen = \"0.0.0.0:1\"\n[kafka]\nbroker = \"x\"\n[limits]\ncompile = 5\n\
                [bindings.vectors.scans]\nbackend = \"pinecone\"\ndimension = 64\n[bindings.sql.results]\nbackend = \"mysql\"\n";
    let shown = parse(text).unwrap_err();
    for part in [
        "2:10: /server/listen: 'here' is not an address",
        "5:1: /kafka/broker: unknown key 'broker' (perhaps brokers)",
        "7:11: /limits/compile: '5' has no unit",
        "'api_key' is missing",
        "'host' is missing",
        "/bindings/sql/results/backend: 'mysql' is not one of",
    ] {
        assert!(
            shown.iter().any(|line| line.contains(part)),
            "{part} in {shown:#?}"
        );
    }
}

#[test]
fn an_open_admin_listener_needs_a_token() {
    let open = "[server]\nadmin_listen = \"0.0.0.0:8081\"\n";
    assert!(parse(open).unwrap_err()[0].contains("admin_token"));
    let environment = [("STEPWELL_ADMIN_TOKEN", "t0ken")];
    let config = parse_with(open, &environment, &Overrides::default()).unwrap();
    assert_eq!(config.admin_token.unwrap().expose(), "t0ken");
}

#[test]
fn secrets_come_from_elsewhere_and_literals_warn() {
    let text = "[server]\nadmin_token = { env = \"TOKEN\" }\n[bindings.keyvalue.r]\nbackend = \"redis\"\nurl = \"redis://:pw@h:1/\"\n";
    let config = parse_with(text, &[("TOKEN", "s3cret")], &Overrides::default()).unwrap();
    assert_eq!(config.warnings.len(), 1);
    let shown = format!("{config:?}");
    assert!(
        !shown.contains("s3cret") && !shown.contains("pw@"),
        "{shown}"
    );
    let missing = parse(text).unwrap_err();
    assert!(missing[0].contains("TOKEN"), "{missing:?}");
}

#[test]
fn the_example_configuration_has_no_mistakes() {
    let secrets = [
        ("STEPWELL_ADMIN_TOKEN", "t"),
        ("DATABASE_URL", "postgres://h/a"),
        ("RESULTS_URL", "postgres://h/b"),
        ("REDIS_URL", "redis://h/"),
    ];
    let text = include_str!("../../../../deploy/stepwell.toml");
    let config = parse_with(text, &secrets, &Overrides::default()).unwrap();
    assert!(config.warnings.is_empty());
    assert_eq!(config.bindings.names().len(), 4);
}

#[test]
fn an_empty_token_is_no_token() {
    let open = "[server]\nadmin_listen = \"0.0.0.0:8081\"\n";
    let environment = [("STEPWELL_ADMIN_TOKEN", "")];
    assert!(parse_with(open, &environment, &Overrides::default()).is_err());
    assert!(parse("[server]\nadmin_token = \"\"\n").unwrap_err()[0].contains("empty"));
}

#[test]
fn a_mistake_in_the_environment_names_the_variable() {
    let shown = parse_with(
        "",
        &[("STEPWELL_LIMITS_COMPONENT", "64")],
        &Overrides::default(),
    )
    .unwrap_err();
    assert!(shown[0].contains("STEPWELL_LIMITS_COMPONENT"), "{shown:?}");
    assert!(!shown[0].starts_with('0'), "{shown:?}");
}

#[test]
fn kafka_settings_that_promises_rest_on_are_refused() {
    let shown = parse("[kafka.properties]\n\"enable.auto.commit\" = true\n").unwrap_err();
    assert!(shown[0].contains("host's own"), "{shown:?}");
}

/// A directory with a certificate, its key, and a set of keys.
fn files() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default()
        .self_signed(&key)
        .unwrap();
    let write = |name: &str, text: String| std::fs::write(directory.path().join(name), text);
    write("own.pem", certificate.pem()).unwrap();
    write("own.key", key.serialize_pem()).unwrap();
    let keys = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    write("keys.json", keys.to_owned()).unwrap();
    directory
}

#[test]
fn one_certificate_is_for_both_listeners_unless_the_file_says_otherwise() {
    let files = files();
    let at = |name: &str| files.path().join(name).display().to_string();
    let both = format!(
        "[server.tls]\ncertificate = \"{}\"\nkey = \"{}\"\n",
        at("own.pem"),
        at("own.key")
    );
    let config = parse(&both).unwrap();
    assert_eq!(config.tls.as_ref().unwrap().section, "tls");
    assert_eq!(config.admin_tls, config.tls);
    let own = both.replace("[server.tls]", "[server.admin_tls]");
    let config = parse(&format!("{both}{own}")).unwrap();
    assert_eq!(config.admin_tls.unwrap().section, "admin_tls");
    let config = parse(&own).unwrap();
    assert!(config.tls.is_none() && config.admin_tls.is_some());
    let config = parse(&format!("[server]\nadmin_tls = false\n{both}")).unwrap();
    assert!(config.tls.is_some() && config.admin_tls.is_none());
    let (certificate, key) = (at("own.pem"), at("own.key"));
    let environment = [
        ("STEPWELL_SERVER_TLS_CERTIFICATE", certificate.as_str()),
        ("STEPWELL_SERVER_TLS_KEY", key.as_str()),
    ];
    let config = parse_with("", &environment, &Overrides::default()).unwrap();
    assert!(config.tls.is_some());
}

#[test]
fn mistakes_in_certificates_have_their_places() {
    let files = files();
    let certificate = files.path().join("own.pem").display().to_string();
    let text = format!(
        "[server.tls]\ncertificate = \"{certificate}\"\nkey = \"{certificate}\"\n[server.admin_tls]\ncertificate = \"missing.pem\"\nfile = \"x\"\n"
    );
    let shown = parse(&text).unwrap_err();
    for part in [
        "3:7: /server/tls/key: there is no private key in it",
        "/server/admin_tls: 'key' is missing",
        "6:1: /server/admin_tls/file: unknown key 'file'",
    ] {
        assert!(
            shown.iter().any(|line| line.contains(part)),
            "{part} in {shown:#?}"
        );
    }
    let text = "[server.tls]\ncertificate = \"missing.pem\"\nkey = \"missing.key\"\n[server]\nadmin_tls = true\n";
    let shown = parse(text).unwrap_err().join("\n");
    assert!(
        shown.contains("2:15: /server/tls/certificate: cannot read /etc/missing.pem"),
        "{shown}"
    );
    assert!(
        shown.contains("/server/admin_tls: expected certificate and key, or false"),
        "{shown}"
    );
    let environment = [("STEPWELL_SERVER_TLS_KEY", "k")];
    let shown = parse_with("", &environment, &Overrides::default()).unwrap_err();
    assert!(shown[0].contains("'certificate' is missing"), "{shown:?}");
}

#[test]
fn an_issuer_is_whole_and_its_keys_are_a_url_or_a_file() {
    let files = files();
    let keys = files.path().join("keys.json").display().to_string();
    let of = |jwks: &str| {
        format!(
            "[server.jwt]\nissuer = \"i\"\naudience = \"a\"\njwks = \"{jwks}\"\ntrusted = [\"http://k:1/\"]\n"
        )
    };
    for jwks in [
        keys.as_str(),
        "https://i.example/keys",
        "http://10.0.0.1/keys",
    ] {
        let config = parse(&of(jwks)).unwrap();
        assert_eq!(config.jwt.issuer.as_ref().unwrap().jwks, jwks);
        assert!(config.jwt.host().has_issuer);
        assert!(config.jwt.host().trusts("http://k:1/keys"));
        assert!(!config.jwt.host().trusts("http://k:11/keys"));
    }
    assert!(!parse("").unwrap().jwt.host().has_issuer);
    let certificate = files.path().join("own.pem").display().to_string();
    for (text, part) in [
        (
            of("missing.json"),
            "/server/jwt/jwks: cannot read /etc/missing.json",
        ),
        (
            of(&certificate),
            "/server/jwt/jwks: this is no JSON Web Key Set",
        ),
        (of(""), "/server/jwt/jwks: this is empty"),
        ("[server.jwt]\nissuer = \"i\"\n".to_owned(), "go together"),
        (
            "[server.jwt]\ntrusted = [\"k:1\", \"http://u@k\"]\n".to_owned(),
            "'k:1' is not an origin",
        ),
    ] {
        let shown = parse(&text).unwrap_err().join("\n");
        assert!(shown.contains(part), "{part} in {shown}");
    }
}
