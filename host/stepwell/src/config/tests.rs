use stepwell_kafka_trigger::Brokers;

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
    assert_eq!(config.keep_audit, Duration::from_secs(90 * 86_400));
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
fn the_audit_log_is_kept_as_long_as_is_said() {
    let config = parse("[audit]\nkeep = \"36h\"\n").unwrap();
    assert_eq!(config.keep_audit, Duration::from_secs(36 * 3600));
    let shown = parse("[audit]\nkeep = \"90\"\n").unwrap_err();
    assert!(
        shown[0].contains("2:8: /audit/keep: '90' has no unit") && shown[0].contains("90d"),
        "{shown:?}"
    );
    assert!(parse("[audit]\nkeep = \"0d\"\n").is_err());
    assert!(parse("[audit]\nkept = \"1d\"\n").is_err());
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
fn a_binding_may_be_for_some_namespaces() {
    let config = parse(
        "[bindings.sql.results]\nnamespaces = [\"team-a\", \"team-b\"]\n[bindings.keyvalue.results]\n",
    )
    .unwrap();
    let includes = |namespace: &str, kind| {
        let namespace = namespace.parse().unwrap();
        config.reach.includes(&namespace, kind, "results")
    };
    assert!(includes("team-a", BindingKind::Sql) && includes("team-b", BindingKind::Sql));
    assert!(!includes("team-c", BindingKind::Sql));
    assert!(includes("team-c", BindingKind::Keyvalue));
    for (wrong, message) in [
        ("[]", "nobody could use it"),
        ("\"team-a\"", "a list"),
        ("[\"Team A\"]", "/bindings/sql/results/namespaces/0"),
        ("[5]", "/bindings/sql/results/namespaces/0"),
    ] {
        let text = format!("[bindings.sql.results]\nnamespaces = {wrong}\n");
        let shown = parse(&text).unwrap_err();
        assert!(shown[0].contains(message), "{shown:?}");
    }
}

#[test]
fn names_of_kafka_may_have_owners() {
    let config =
        parse("[kafka.owners]\n\"team-a.\" = \"team-a\"\n\"team-a.open.\" = \"team-b\"\n").unwrap();
    let allows = |namespace: &str, name| {
        let namespace = namespace.parse().unwrap();
        config.reach.kafka.allows(&namespace, name)
    };
    assert!(allows("team-a", "team-a.in") && !allows("team-b", "team-a.in"));
    assert!(!allows("team-a", "team-a.open.in") && allows("team-b", "team-a.open.in"));
    assert!(allows("team-c", "team-a") && allows("team-c", "others"));
    for (wrong, message) in [
        ("\"\" = \"team-a\"", "no topic begins with ''"),
        ("\"team a\" = \"team-a\"", "no topic begins with 'team a'"),
        ("\"team-a.\" = \"Team A\"", "/kafka/owners/team-a."),
        ("\"team-a.\" = 5", "/kafka/owners/team-a."),
    ] {
        let shown = parse(&format!("[kafka.owners]\n{wrong}\n")).unwrap_err();
        assert!(shown[0].contains(message), "{shown:?}");
    }
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
fn outbound_http_is_bounded_by_the_operator() {
    let text = "[egress]\nprivate = [\"10.1.0.0/16\"]\nallow = [\"*.example.com\"]\nresponse_bytes = \"1MiB\"\nrequests = 5\n";
    let config = parse(text).unwrap().egress;
    assert_eq!((config.private.len(), config.allow.len()), (1, 1));
    assert_eq!((config.response_bytes, config.requests), (1 << 20, 5));
    let environment = [
        ("STEPWELL_EGRESS_PRIVATE", "127.0.0.1, fd00::/8"),
        ("STEPWELL_EGRESS_REQUESTS_PER_CALL", "7"),
    ];
    let config = parse_with(text, &environment, &Overrides::default()).unwrap();
    assert_eq!(config.egress.private.len(), 2);
    assert_eq!(config.egress.requests_per_call, 7);

    let wrong = "[egress]\nprivate = [\"10.1.2.3/16\", \"x\", 5]\ndeny = [\"https://a.example\"]\nca = \"nowhere.pem\"\nrequests = 0\nretries = 1\n";
    let shown = parse(wrong).unwrap_err();
    for part in [
        "2:12: /egress/private/0: '10.1.2.3/16': the address has bits beyond its network (perhaps 10.1.0.0/16)",
        "/egress/private/1: 'x': this is no network",
        "/egress/private/2: expected a text",
        "3:9: /egress/deny/0: 'https://a.example'",
        "4:6: /egress/ca: cannot read certificates from /etc/nowhere.pem",
        "5:12: /egress/requests: 0 is not between 1 and 100000",
        "6:1: /egress/retries: unknown key 'retries'",
    ] {
        assert!(
            shown.iter().any(|line| line.contains(part)),
            "{part} in {shown:#?}"
        );
    }
}

#[test]
fn embedded_stores_have_a_size() {
    let text = "[bindings.sql.a]\nmax_size = \"5GiB\"\n[bindings.sql.b]\n[bindings.keyvalue.c]\nmax_size = \"1MiB\"\n";
    let bindings = parse(text).unwrap().bindings;
    let sql = |name: &str| match bindings.sql.get(name) {
        Some(SqlBindingConfig::Sqlite { max_size }) => *max_size,
        other => panic!("{other:?}"),
    };
    assert_eq!((sql("a"), sql("b")), (5 << 30, 1 << 30));
    let kept = KeyValueBindingConfig::Local { max_size: 1 << 20 };
    assert_eq!(bindings.keyvalue.get("c"), Some(&kept));

    let wrong = "[bindings.sql.a]\nmax_size = \"1023KiB\"\n[bindings.keyvalue.c]\nmax_size = \"17000GiB\"\n\
                 [bindings.keyvalue.r]\nbackend = \"redis\"\nurl = \"redis://h/\"\nmax_size = \"1GiB\"\n";
    let shown = parse(wrong).unwrap_err();
    for part in [
        "2:12: /bindings/sql/a/max_size: 'max_size' is not between 1MiB and 16384GiB",
        "4:12: /bindings/keyvalue/c/max_size: 'max_size' is not between",
        "8:1: /bindings/keyvalue/r/max_size: unknown key 'max_size'",
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
    let environment = [("STEPWELL_ADMIN_TOKEN", "sixteen-letters.")];
    let config = parse_with(open, &environment, &Overrides::default()).unwrap();
    assert_eq!(config.admin_token.unwrap().expose(), "sixteen-letters.");
}

#[test]
fn secrets_come_from_elsewhere_and_literals_warn() {
    let text = "[server]\nadmin_token = { env = \"TOKEN\" }\n[bindings.keyvalue.r]\nbackend = \"redis\"\nurl = \"redis://:pw@h:1/\"\n";
    let config = parse_with(
        text,
        &[("TOKEN", "s3cret-and-no-less")],
        &Overrides::default(),
    )
    .unwrap();
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
        ("STEPWELL_ADMIN_TOKEN", "0123456789abcdef"),
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
fn a_token_that_cannot_be_sent_is_refused_and_one_that_can_be_guessed_is_warned_of() {
    let with = |token: &str| {
        let environment = [("STEPWELL_ADMIN_TOKEN", token)];
        parse_with("", &environment, &Overrides::default())
    };
    for (token, part) in [
        ("x".repeat(1025), "1024 are the most"),
        ("with spaces in the token".to_owned(), "spaces"),
        ("tökentökentökentöken".to_owned(), "ASCII"),
    ] {
        let shown = with(&token).unwrap_err();
        assert!(shown[0].contains(part) && shown.len() == 1, "{shown:?}");
        assert!(!shown[0].contains(&token), "{shown:?}");
    }
    for (token, warnings) in [
        ("x".repeat(15), 1),
        ("x".repeat(16), 0),
        ("x".repeat(1024), 0),
    ] {
        let config = with(&token).unwrap();
        assert_eq!(config.warnings.len(), warnings, "{:?}", config.warnings);
        assert_eq!(config.admin_token.unwrap().expose(), token);
    }
    let warned = with("short").unwrap().warnings;
    assert!(warned[0].message.contains("5 characters"), "{warned:?}");
    // It is one mistake, and not that there is no token, too.
    let open = "[server]\nadmin_listen = \"0.0.0.0:8081\"\nadmin_token = \"a b\"\n";
    let shown = parse(open).unwrap_err();
    assert!(shown.len() == 1 && shown[0].contains("spaces"), "{shown:?}");
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
    // The environment goes before the file, even where that says that there is none.
    let environment = environment.map(|(name, value)| (name.replace("_TLS", "_ADMIN_TLS"), value));
    let environment = [0, 1].map(|index: usize| {
        let (name, value) = &environment[index];
        (name.as_str(), *value)
    });
    let text = format!("[server]\nadmin_tls = false\n{both}");
    let config = parse_with(&text, &environment, &Overrides::default()).unwrap();
    assert_eq!(config.admin_tls.unwrap().section, "admin_tls");
    let text = format!("[server]\nadmin_tls = true\n{both}");
    let shown = parse_with(&text, &environment, &Overrides::default()).unwrap_err();
    assert!(
        shown[0].contains("/server/admin_tls: expected certificate and key, or false"),
        "{shown:?}"
    );
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

#[test]
fn limits_that_cannot_work_are_refused() {
    for (text, word) in [
        ("uploads = \"1MiB\"", "limits.component"),
        ("compile_memory = \"1MiB\"", "16MiB"),
        ("cache = \"1KiB\"", "1MiB"),
        ("loaded_components = 0", "loaded_components"),
        ("bodies = \"1KiB\"", "1MiB"),
        ("revisions = 1", "1 is not between 2 and 100000"),
        ("pipelines = 0", "0 is not between 1 and 1000000"),
        ("subscriptions = 0", "0 is not between 1 and 100000"),
    ] {
        let shown = parse(&format!("[limits]\n{text}\n")).unwrap_err();
        assert!(shown[0].contains(word), "{text}: {shown:?}");
    }
    let limits = parse("[limits]\ncomponent = \"1MiB\"\n").unwrap().limits;
    assert_eq!(limits.uploads, 4 << 20);
    let text = "[limits]\ncomponent = \"1MiB\"\nuploads = \"2MiB\"\ncompile_memory = \"1GiB\"\ncache = \"2GiB\"\nloaded_components = 7\nbodies = \"3MiB\"\n";
    let limits = parse(text).unwrap().limits;
    assert_eq!(
        (
            limits.uploads,
            limits.compile_memory,
            limits.cache,
            limits.loaded_components,
            limits.bodies
        ),
        (2 << 20, 1 << 30, 2 << 30, 7, 3 << 20)
    );
    assert_eq!(
        (limits.catalog.revisions, limits.catalog.pipelines),
        (1_000, 20_000)
    );
    assert_eq!(limits.subscriptions, 256);
    // In the environment, whole numbers are whole numbers too.
    let environment = [
        ("STEPWELL_LIMITS_REVISIONS", "5"),
        ("STEPWELL_LIMITS_PIPELINES", "6"),
        ("STEPWELL_LIMITS_LOADED_COMPONENTS", "7"),
        ("STEPWELL_LIMITS_SUBSCRIPTIONS", "8"),
    ];
    let limits = parse_with(
        "[limits]\nrevisions = 9\n",
        &environment,
        &Overrides::default(),
    )
    .unwrap()
    .limits;
    assert_eq!((limits.catalog.revisions, limits.catalog.pipelines), (5, 6));
    assert_eq!((limits.loaded_components, limits.subscriptions), (7, 8));
}
