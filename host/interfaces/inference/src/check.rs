//! What a SavedModel must be before libtensorflow and the `tensorflow` crate see it.
//!
//! The nesting is checked first, since the crate's old `protobuf` follows any depth (RUSTSEC-2024-0437).

use prost::Message as _;
use prost::encoding::{WireType, decode_key, decode_varint};

use crate::LoadError;
use crate::ops::refuse_ops;
use crate::saved_model::{MetaGraphDef, SavedModel};

/// The tag of the graph that is served.
pub(crate) const SERVE: &str = "serve";

/// Messages within messages; prost and libtensorflow allow as many.
const MAX_NESTING: usize = 100;

/// The graph to be served, once it is found safe to load.
///
/// # Errors
/// [`LoadError`]: it is no SavedModel, is nested too deeply, has no graph to serve, or reaches a refused op.
pub(crate) fn check(bytes: &[u8]) -> Result<MetaGraphDef, LoadError> {
    match nesting(bytes, 0) {
        None => {
            return Err(LoadError(
                "saved_model.pb is no SavedModel, or is truncated".into(),
            ));
        }
        Some(depth) if depth > MAX_NESTING => {
            return Err(LoadError(format!(
                "saved_model.pb is nested more than {MAX_NESTING} messages deep"
            )));
        }
        Some(_) => {}
    }
    let saved = SavedModel::decode(bytes)
        .map_err(|error| LoadError(format!("saved_model.pb is no SavedModel: {error}")))?;
    let graph = (saved.meta_graphs.into_iter())
        .find(|graph| {
            let tags = graph
                .meta_info_def
                .as_ref()
                .map(|info| info.tags.as_slice());
            tags == Some(&[SERVE.to_owned()])
        })
        .ok_or_else(|| {
            LoadError(format!(
                "the SavedModel has no graph with the tag '{SERVE}'"
            ))
        })?;
    refuse_ops(&graph)?;
    Ok(graph)
}

/// How deep `bytes` are nested when every part that could be a message is taken for one; none: they are no message.
fn nesting(mut bytes: &[u8], level: usize) -> Option<usize> {
    let mut deepest = level;
    let mut groups = 0_usize;
    while !bytes.is_empty() {
        let (_, wire) = decode_key(&mut bytes).ok()?;
        match wire {
            WireType::Varint => {
                decode_varint(&mut bytes).ok()?;
            }
            WireType::ThirtyTwoBit => bytes = bytes.get(4..)?,
            WireType::SixtyFourBit => bytes = bytes.get(8..)?,
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
                let (inner, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                let here = level + groups;
                // One past the limit is deep enough to be refused, and bounds this very recursion.
                let inner = if here > MAX_NESTING {
                    Some(here)
                } else {
                    nesting(inner, here + 1)
                };
                deepest = deepest.max(inner.unwrap_or(here));
            }
            WireType::StartGroup => {
                groups += 1;
                deepest = deepest.max(level + groups);
            }
            WireType::EndGroup => groups = groups.checked_sub(1)?,
        }
    }
    (groups == 0).then_some(deepest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_nesting_is_refused_in_messages_and_in_groups() {
        let mut messages = Vec::new();
        for _ in 0..5000 {
            let mut outer = vec![0x12]; // field 2, length-delimited
            prost::encoding::encode_varint(messages.len() as u64, &mut outer);
            outer.extend(messages);
            messages = outer;
        }
        let groups = [vec![0x7b; 100_000], vec![0x7c; 100_000]].concat(); // field 15, start and end
        let mut within = vec![0x12];
        prost::encoding::encode_varint(groups.len() as u64, &mut within);
        within.extend(&groups);
        for bytes in [messages, groups, within] {
            let message = check(&bytes).unwrap_err().0;
            assert!(message.contains("more than 100 messages deep"), "{message}");
        }
    }

    #[test]
    fn rubbish_is_no_saved_model() {
        for bytes in [&b"not a model"[..], &[0xff; 64], &[0x12, 0x7f, 1]] {
            assert!(check(bytes).unwrap_err().0.contains("no SavedModel"));
        }
        assert!(
            check(b"")
                .unwrap_err()
                .0
                .contains("no graph with the tag 'serve'")
        );
    }
}
