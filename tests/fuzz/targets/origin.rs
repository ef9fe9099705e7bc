//! Origins of requests and grants: what is read is written in one way, and a grant is for what it says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stepwell_core::{HostName, Origin, OriginPattern, Scheme};

fuzz_target!(|text: &str| {
    if let Ok(origin) = Origin::new(Scheme::Http, text) {
        let authority = origin.authority();
        assert_eq!(Origin::new(Scheme::Http, &authority).as_ref(), Ok(&origin));
        assert!(!authority.contains(['@', '/', '?', '#', '\\', '%', ' ', '\r', '\n', '\0']));
        // No resolver takes such a name for an address.
        if let HostName::Dns(name) = &origin.host {
            let last = name.rsplit('.').next().unwrap_or_default();
            assert!(!last.bytes().all(|byte| byte.is_ascii_digit()));
        }
        let grant: OriginPattern = origin.to_string().parse().expect("an origin is a grant");
        assert!(grant.matches(&origin) && grant.is_exact());
    }
    if let Ok(grant) = text.parse::<OriginPattern>() {
        assert_eq!(grant.to_string().parse().as_ref(), Ok(&grant));
    }
});
