use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use half::{bf16, f16};
use serde::ser::{SerializeMap as _, SerializeSeq as _};
use serde::{Deserialize, Serialize, Serializer};

use crate::json_read;
use crate::tensor::{Strings, element_count};
use crate::{DataType, InferError, Signature, Tensor};

/// Which parts of a JSON document are a model's inputs, and where its outputs go: a pipeline's `model` node.
///
/// A tensor is nested lists, row-major; a scalar is a bare value. Numbers are never rounded to fit an integer datatype and
/// never overflow; booleans are `true` and `false`. Elements of `bytes` are strings, or `{"b64": "…"}` for what is not UTF-8, as
/// in TensorFlow Serving, both ways. NaN and the infinities, which JSON does not have, become `null`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JsonMapping {
    /// JSON Pointers (RFC 6901) by the input that each is for. An input that is not here is the member of its own name.
    pub inputs: BTreeMap<String, String>,
    /// Outputs by the member of the reply that each becomes; none: all, under their own names.
    pub outputs: BTreeMap<String, String>,
}

impl JsonMapping {
    /// The inputs of a signature, out of a document.
    pub(crate) fn inputs(
        &self,
        signature: &Signature,
        data: &[u8],
    ) -> Result<Vec<Tensor>, InferError> {
        for name in self.inputs.keys() {
            if !signature.inputs.iter().any(|info| info.name == *name) {
                return Err(InferError::InvalidInput(format!(
                    "the model has no input '{name}'"
                )));
            }
        }
        let pointers = signature.inputs.iter().map(|info| {
            let pointer = self.inputs.get(&info.name).cloned();
            (info, pointer.unwrap_or_else(|| member(&info.name)))
        });
        json_read::read(pointers.collect(), data)
    }

    /// The outputs to ask for, each once; none: all.
    pub(crate) fn outputs(&self) -> Vec<String> {
        let wanted: BTreeSet<&String> = self.outputs.values().collect();
        wanted.into_iter().cloned().collect()
    }

    /// The reply: an object of the wanted outputs.
    pub(crate) fn reply(&self, tensors: &[Tensor]) -> Result<Vec<u8>, InferError> {
        serde_json::to_vec(&Reply {
            mapping: self,
            tensors,
        })
        .map_err(|error| {
            tracing::warn!(%error, "a model's output cannot be written as JSON");
            InferError::Internal("the model's output cannot be written as JSON".into())
        })
    }
}

/// The JSON Pointer of a member.
fn member(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

struct Reply<'a> {
    mapping: &'a JsonMapping,
    tensors: &'a [Tensor],
}

impl Serialize for Reply<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        if self.mapping.outputs.is_empty() {
            for tensor in self.tensors {
                object.serialize_entry(
                    &tensor.name,
                    &Elements::of(tensor).ok_or_else(lying)?.whole(),
                )?;
            }
        }
        for (member, name) in &self.mapping.outputs {
            let tensor = self
                .tensors
                .iter()
                .find(|tensor| tensor.name == *name)
                .ok_or_else(lying)?;
            object.serialize_entry(member, &Elements::of(tensor).ok_or_else(lying)?.whole())?;
        }
        object.end()
    }
}

fn lying<E: serde::ser::Error>() -> E {
    E::custom("an output is not what its shape says")
}

/// A tensor's elements, to be written.
struct Elements<'a> {
    datatype: DataType,
    shape: Vec<usize>,
    data: &'a [u8],
    strings: Vec<&'a [u8]>,
}

impl<'a> Elements<'a> {
    fn of(tensor: &'a Tensor) -> Option<Self> {
        let strings = match tensor.datatype {
            DataType::Bytes => Strings::new(&tensor.data).collect(),
            _ => Vec::new(),
        };
        let count = element_count(&tensor.shape)?;
        let complete = match tensor.datatype.size() {
            Some(size) => count.checked_mul(size) == Some(tensor.data.len()),
            None => strings.len() == count,
        };
        let shape = tensor
            .shape
            .iter()
            .map(|size| usize::try_from(*size).ok())
            .collect::<Option<_>>()?;
        complete.then_some(Self {
            datatype: tensor.datatype,
            shape,
            data: &tensor.data,
            strings,
        })
    }

    fn whole(&self) -> Nested<'_> {
        Nested {
            elements: self,
            shape: &self.shape,
            start: 0,
        }
    }

    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.data.as_chunks().0.get(at).copied()
    }
}

/// The part of a tensor from an element on, of this shape.
struct Nested<'a> {
    elements: &'a Elements<'a>,
    shape: &'a [usize],
    start: usize,
}

impl Serialize for Nested<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some((size, shape)) = self.shape.split_first() else {
            return self.element(serializer);
        };
        let stride: usize = shape.iter().product();
        let mut list = serializer.serialize_seq(Some(*size))?;
        for at in 0..*size {
            list.serialize_element(&Nested {
                start: self.start + at * stride,
                shape,
                ..*self
            })?;
        }
        list.end()
    }
}

impl Nested<'_> {
    fn element<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (elements, at) = (self.elements, self.start);
        macro_rules! number {
            ($type:ty) => {
                <$type>::from_le_bytes(elements.bytes(at).ok_or_else(lying)?)
            };
        }
        match elements.datatype {
            DataType::Boolean => serializer.serialize_bool(number!(u8) != 0),
            DataType::U8 => serializer.serialize_u8(number!(u8)),
            DataType::U16 => serializer.serialize_u16(number!(u16)),
            DataType::U32 => serializer.serialize_u32(number!(u32)),
            DataType::U64 => serializer.serialize_u64(number!(u64)),
            DataType::S8 => serializer.serialize_i8(number!(i8)),
            DataType::S16 => serializer.serialize_i16(number!(i16)),
            DataType::S32 => serializer.serialize_i32(number!(i32)),
            DataType::S64 => serializer.serialize_i64(number!(i64)),
            DataType::F16 => serializer.serialize_f32(number!(f16).to_f32()),
            DataType::Bf16 => serializer.serialize_f32(number!(bf16).to_f32()),
            DataType::F32 => serializer.serialize_f32(number!(f32)),
            DataType::F64 => serializer.serialize_f64(number!(f64)),
            DataType::Bytes => {
                let bytes = elements.strings.get(at).ok_or_else(lying)?;
                match std::str::from_utf8(bytes) {
                    Ok(text) => serializer.serialize_str(text),
                    Err(_) => {
                        let mut object = serializer.serialize_map(Some(1))?;
                        object.serialize_entry("b64", &BASE64.encode(bytes))?;
                        object.end()
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorInfo;

    fn signature(datatype: DataType, shape: Option<&[i64]>) -> Signature {
        Signature {
            inputs: vec![TensorInfo {
                name: "x".into(),
                datatype,
                shape: shape.map(<[i64]>::to_vec),
            }],
            outputs: vec![],
        }
    }

    fn read(signature: &Signature, data: &str) -> Result<Tensor, String> {
        match JsonMapping::default().inputs(signature, data.as_bytes()) {
            Ok(tensors) => Ok(tensors.into_iter().next().unwrap()),
            Err(InferError::InvalidInput(message)) => Err(message),
            Err(other) => panic!("{other}"),
        }
    }

    fn write(tensor: Tensor) -> String {
        String::from_utf8(JsonMapping::default().reply(&[tensor]).unwrap()).unwrap()
    }

    #[test]
    fn what_is_read_is_written_as_it_was() {
        for (datatype, shape, text) in [
            (
                DataType::F32,
                vec![-1, 2],
                r#"{"x":[[0.1,-2.5],[1e+30,0.0]]}"#,
            ),
            (DataType::F64, vec![2], r#"{"x":[0.1,1e+300]}"#),
            (DataType::F16, vec![2], r#"{"x":[0.5,-2.0]}"#),
            (DataType::Bf16, vec![2], r#"{"x":[0.5,-2.0]}"#),
            (DataType::U64, vec![1], r#"{"x":[18446744073709551615]}"#),
            (DataType::S64, vec![1], r#"{"x":[-9223372036854775808]}"#),
            (DataType::U8, vec![2], r#"{"x":[0,255]}"#),
            (DataType::S8, vec![2], r#"{"x":[-128,127]}"#),
            (DataType::S16, vec![], r#"{"x":-7}"#),
            (DataType::U16, vec![1], r#"{"x":[65535]}"#),
            (DataType::U32, vec![1], r#"{"x":[4294967295]}"#),
            (DataType::S32, vec![1, 1], r#"{"x":[[-1]]}"#),
            (DataType::Boolean, vec![2], r#"{"x":[true,false]}"#),
            (
                DataType::Bytes,
                vec![-1],
                r#"{"x":["","é",{"b64":"//4="}]}"#,
            ),
        ] {
            let tensor = read(&signature(datatype, Some(&shape)), text).unwrap();
            assert_eq!(write(tensor), text, "{datatype}");
        }
    }

    #[test]
    fn a_model_of_any_rank_takes_the_lists_as_they_are() {
        let any = signature(DataType::F32, None);
        assert_eq!(read(&any, r#"{"x":[[1,2,3]]}"#).unwrap().shape, [1, 3]);
        assert_eq!(read(&any, r#"{"x":1}"#).unwrap().shape, [0_i64; 0]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_place() {
        let image = signature(DataType::F32, Some(&[-1, 2, 2]));
        let byte = signature(DataType::U8, Some(&[-1]));
        for (signature, data, expected) in [
            (
                &image,
                r#"{"x":[[1,2],[3,4]]}"#,
                "the number 1, but the model wants lists of the shape [-1, 2, 2]",
            ),
            (
                &image,
                r#"{"x":[[[1,2],[3]]]}"#,
                "at '/x/0/1' a list of 1, but a list of 2 before it",
            ),
            (&image, r#"{"x":[[[1,2],3]]}"#, "at '/x/0/1' the number 3"),
            (
                &image,
                r#"{"x":[[[1,2],[3,"4"]]]}"#,
                "at '/x/0/1/1' the text '4', which is no f32",
            ),
            (
                &image,
                r#"{"x":[[[1,2],[3,[4]]]]}"#,
                "at '/x/0/1/1' a list of 1, which is no f32",
            ),
            (&image, r#"{"x":[[[1,2],[3,1e300]]]}"#, "which is no f32"),
            (&image, r#"{"y":1}"#, "nothing at '/x' for the input 'x'"),
            (&image, "[1]", "nothing at '/x'"),
            (&image, "{", "no JSON"),
            (&byte, r#"{"x":[256]}"#, "the number 256, which is no u8"),
            (&byte, r#"{"x":[-1]}"#, "which is no u8"),
            (&byte, r#"{"x":[1.5]}"#, "which is no u8"),
            (&byte, r#"{"x":[null]}"#, "null, which is no u8"),
        ] {
            let message = read(signature, data).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
        assert_eq!(read(&byte, r#"{"x":[2.0]}"#).unwrap().data, [2]);
    }

    #[test]
    fn pointers_choose_inputs_and_members_name_outputs() {
        let mapping: JsonMapping = serde_json::from_str(
            r#"{"inputs": {"x": "/picture/0"}, "outputs": {"answer": "y", "again": "y"}}"#,
        )
        .unwrap();
        let signature = signature(DataType::U8, Some(&[2]));
        let inputs = mapping
            .inputs(&signature, br#"{"picture": [[1, 2], 3]}"#)
            .unwrap();
        assert_eq!(inputs[0].data, [1, 2]);
        assert_eq!(mapping.outputs(), ["y"]);
        let output = Tensor {
            name: "y".into(),
            ..inputs[0].clone()
        };
        assert_eq!(
            mapping.reply(&[output]).unwrap(),
            br#"{"again":[1,2],"answer":[1,2]}"#
        );

        let wrong = JsonMapping {
            inputs: [("z".into(), "/x".into())].into(),
            ..JsonMapping::default()
        };
        assert!(wrong.inputs(&signature, b"{}").is_err());
    }

    fn inputs(pointers: &[&str], data: &str) -> Result<Vec<Vec<u8>>, String> {
        let name = |at: usize| format!("x{at}");
        let signature = Signature {
            inputs: (0..pointers.len())
                .map(|at| TensorInfo {
                    name: name(at),
                    datatype: DataType::U8,
                    shape: None,
                })
                .collect(),
            outputs: vec![],
        };
        let pointers = pointers.iter().enumerate();
        let mapping = JsonMapping {
            inputs: pointers
                .map(|(at, pointer)| (name(at), (*pointer).to_owned()))
                .collect(),
            ..JsonMapping::default()
        };
        let tensors = mapping.inputs(&signature, data.as_bytes());
        let tensors = tensors.map_err(|error| error.to_string())?;
        Ok(tensors.into_iter().map(|tensor| tensor.data).collect())
    }

    #[test]
    fn inputs_may_be_anywhere_and_share_parts() {
        let data = r#"{"a": {"b": [[1, 2], [3, 4]], "": 9}, "c/d~": [5], "e": "text", "0": 8}"#;
        for (pointers, expected) in [
            (&["/a/b", "/c~1d~0"][..], vec![vec![1, 2, 3, 4], vec![5]]),
            (&["/c~1d~0", "/a/b/1"], vec![vec![5], vec![3, 4]]),
            // The same, and a part of another's.
            (
                &["/a/b", "/a/b", "/a/b/0", "/a/b/1/1", "/a/", "/0"],
                vec![
                    vec![1, 2, 3, 4],
                    vec![1, 2, 3, 4],
                    vec![1, 2],
                    vec![4],
                    vec![9],
                    vec![8],
                ],
            ),
            (&[], vec![]),
        ] {
            assert_eq!(inputs(pointers, data), Ok(expected), "{pointers:?}");
        }
        assert_eq!(
            inputs(&["", "/1"], "[[1],[2]]"),
            Ok(vec![vec![1, 2], vec![2]])
        );
        for nothing in [
            "/a/b/2",
            "/a/b/00",
            "/a/b/+1",
            "/a/c",
            "a",
            "/e/0",
            "/0/0",
            "/a/b/0/0/0",
        ] {
            let error = inputs(&[nothing], data).unwrap_err();
            assert!(
                error.contains(&format!("nothing at '{nothing}'")),
                "{error}"
            );
        }
        assert!(inputs(&[], "{").is_err());
        assert!(
            inputs(&["/a"], r#"{"a": 1} 2"#)
                .unwrap_err()
                .contains("no JSON")
        );
        assert!(
            inputs(&["/a"], r#"{"a": [1, 2"#)
                .unwrap_err()
                .contains("no JSON")
        );
    }

    #[test]
    fn of_two_members_of_one_name_the_last_counts() {
        assert_eq!(
            inputs(&["/a"], r#"{"a": [1, 2], "a": [[3]]}"#),
            Ok(vec![vec![3]])
        );
        assert!(inputs(&["/a/b"], r#"{"a": {"b": 1}, "a": {}}"#).is_err());
    }

    #[test]
    fn lists_of_nothing_have_a_shape() {
        let any = signature(DataType::U8, None);
        for (data, shape) in [
            (r#"{"x":[]}"#, &[0_i64][..]),
            (r#"{"x":[[],[]]}"#, &[2, 0]),
            (r#"{"x":[[[]]]}"#, &[1, 1, 0]),
        ] {
            assert_eq!(read(&any, data).unwrap().shape, shape, "{data}");
        }
        for (data, expected) in [
            (
                r#"{"x":[[],[1]]}"#,
                "at '/x/1' a list of 1, but a list of 0 before it",
            ),
            (
                r#"{"x":[[1],[]]}"#,
                "at '/x/1' a list of 0, but a list of 1 before it",
            ),
            (r#"{"x":[1,[2]]}"#, "at '/x/1' a list of 1, which is no u8"),
            (
                r#"{"x":[[1],{"b64":"AA=="}]}"#,
                "at '/x/1' an object, but a list of 1",
            ),
        ] {
            let message = read(&any, data).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
        let bytes = signature(DataType::Bytes, None);
        for data in [
            r#"{"x":{"b64":"?"}}"#,
            r#"{"x":{"b64":5}}"#,
            r#"{"x":{"b64":["AA=="]}}"#,
            r#"{"x":{"b64":"AA==","c":1}}"#,
            r#"{"x":{}}"#,
            r#"{"x":1}"#,
        ] {
            let message = read(&bytes, data).unwrap_err();
            assert!(message.contains("which is no bytes"), "{data}: {message}");
        }
    }

    #[test]
    fn empty_outputs_and_numbers_json_lacks() {
        let output = |shape: &[i64], data: Vec<u8>| Tensor {
            name: "y".into(),
            datatype: DataType::F32,
            shape: shape.to_vec(),
            data,
        };
        assert_eq!(write(output(&[2, 0], vec![])), r#"{"y":[[],[]]}"#);
        let odd = [f32::NAN, f32::INFINITY]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        assert_eq!(write(output(&[2], odd)), r#"{"y":[null,null]}"#);
    }
}
