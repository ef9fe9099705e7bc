use sha2::{Digest as _, Sha256};

/// The same component with other bytes: a custom section more.
pub(crate) fn variant(component: &[u8], name: &str) -> Vec<u8> {
    let mut bytes = component.to_vec();
    let length = u8::try_from(name.len()).unwrap();
    assert!(length < 120, "a length of one byte");
    bytes.extend([0, length + 1, length]);
    bytes.extend(name.as_bytes());
    bytes
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

pub(crate) fn tagged(name: &str, tag: &str) -> String {
    format!(
        "stepwell: 1\nname: {name}\ntriggers:\n  - http: {{method: POST, path: /{name}}}\nsteps:\n\
         \x20 - {{id: only, plugin: tagger@1, config: {{tag: \"{tag}\"}}}}\n"
    )
}
