use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use half::{bf16, f16};
use serde::ser::{SerializeMap as _, SerializeSeq as _};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::tensor::{MAX_RANK, Strings, element_count, shown};
use crate::{DataType, InferError, Signature, Tensor, TensorInfo};

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
        let document: Value = serde_json::from_slice(data)
            .map_err(|error| InferError::InvalidInput(format!("the data is no JSON: {error}")))?;
        for name in self.inputs.keys() {
            if !signature.inputs.iter().any(|info| info.name == *name) {
                return Err(InferError::InvalidInput(format!(
                    "the model has no input '{name}'"
                )));
            }
        }
        signature
            .inputs
            .iter()
            .map(|info| {
                let pointer = self
                    .inputs
                    .get(&info.name)
                    .cloned()
                    .unwrap_or_else(|| member(&info.name));
                let value = document.pointer(&pointer).ok_or_else(|| {
                    InferError::InvalidInput(format!(
                        "the data has nothing at '{pointer}' for the input '{}'",
                        info.name
                    ))
                })?;
                Reader {
                    info,
                    pointer: &pointer,
                    path: Vec::new(),
                }
                .read(value)
            })
            .collect()
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

/// Reads one tensor from nested lists.
struct Reader<'a> {
    info: &'a TensorInfo,
    pointer: &'a str,
    /// Where in the lists it is.
    path: Vec<usize>,
}

impl Reader<'_> {
    fn read(mut self, value: &Value) -> Result<Tensor, InferError> {
        let shape = self.shape(value)?;
        let mut data = Vec::new();
        self.fill(value, &shape, &mut data)?;
        Ok(Tensor {
            name: self.info.name.clone(),
            datatype: self.info.datatype,
            shape: shape
                .iter()
                .map(|size| i64::try_from(*size).unwrap_or(i64::MAX))
                .collect(),
            data,
        })
    }

    /// The shape by the first element of each list, as deep as the signature wants it.
    fn shape(&self, value: &Value) -> Result<Vec<usize>, InferError> {
        let rank = self
            .info
            .shape
            .as_ref()
            .map_or(MAX_RANK, Vec::len)
            .min(MAX_RANK);
        let mut shape = Vec::new();
        let mut inner = Some(value);
        while let (true, Some(Value::Array(list))) = (shape.len() < rank, inner) {
            shape.push(list.len());
            inner = list.first();
        }
        match (&self.info.shape, inner) {
            (Some(wanted), Some(other)) if shape.len() < wanted.len() => {
                Err(self.refuse(&format!(
                    "{}, but the model wants lists of the shape {wanted:?}",
                    kind(other)
                )))
            }
            _ => Ok(shape),
        }
    }

    fn fill(
        &mut self,
        value: &Value,
        shape: &[usize],
        data: &mut Vec<u8>,
    ) -> Result<(), InferError> {
        let Some((size, inner)) = shape.split_first() else {
            return self.element(value, data);
        };
        let Value::Array(list) = value else {
            return Err(self.refuse(&format!("{}, but a list of {size} before it", kind(value))));
        };
        if list.len() != *size {
            return Err(self.refuse(&format!(
                "a list of {}, but a list of {size} before it",
                list.len()
            )));
        }
        for (at, value) in list.iter().enumerate() {
            self.path.push(at);
            self.fill(value, inner, data)?;
            self.path.pop();
        }
        Ok(())
    }

    fn element(&self, value: &Value, data: &mut Vec<u8>) -> Result<(), InferError> {
        let datatype = self.info.datatype;
        let written = match datatype {
            DataType::Boolean => value.as_bool().map(|value| data.push(u8::from(value))),
            DataType::U8 => integer::<u8>(value).map(|value| data.push(value)),
            DataType::U16 => integer::<u16>(value).map(|value| data.extend(value.to_le_bytes())),
            DataType::U32 => integer::<u32>(value).map(|value| data.extend(value.to_le_bytes())),
            DataType::U64 => integer::<u64>(value).map(|value| data.extend(value.to_le_bytes())),
            DataType::S8 => integer::<i8>(value).map(|value| data.extend(value.to_le_bytes())),
            DataType::S16 => integer::<i16>(value).map(|value| data.extend(value.to_le_bytes())),
            DataType::S32 => integer::<i32>(value).map(|value| data.extend(value.to_le_bytes())),
            DataType::S64 => integer::<i64>(value).map(|value| data.extend(value.to_le_bytes())),
            DataType::F16 => number(value, f16::from_f64, |value| value.is_finite())
                .map(|value| data.extend(value.to_le_bytes())),
            DataType::Bf16 => number(value, bf16::from_f64, |value| value.is_finite())
                .map(|value| data.extend(value.to_le_bytes())),
            #[allow(
                clippy::cast_possible_truncation,
                reason = "what a model's f32 input is for"
            )]
            DataType::F32 => number(value, |value| value as f32, |value| value.is_finite())
                .map(|value| data.extend(value.to_le_bytes())),
            DataType::F64 => value.as_f64().map(|value| data.extend(value.to_le_bytes())),
            DataType::Bytes => bytes(value).and_then(|value| Strings::push(data, &value).ok()),
        };
        written.ok_or_else(|| self.refuse(&format!("{}, which is no {datatype}", kind(value))))
    }

    fn refuse(&self, what: &str) -> InferError {
        let path: String = self.path.iter().map(|at| format!("/{at}")).collect();
        InferError::InvalidInput(format!(
            "input '{}' has at '{}{path}' {what}",
            self.info.name, self.pointer
        ))
    }
}

/// A whole number, also when it is written `1.0`.
fn integer<T: TryFrom<i128>>(value: &Value) -> Option<T> {
    let whole = match (value.as_i64(), value.as_u64()) {
        (Some(value), _) => i128::from(value),
        (None, Some(value)) => i128::from(value),
        (None, None) => {
            let value = value.as_f64()?;
            // Up to here every whole number is itself in binary64.
            let exact = value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0;
            #[allow(clippy::cast_possible_truncation, reason = "whole and small")]
            exact.then_some(value as i128)?
        }
    };
    T::try_from(whole).ok()
}

fn number<T>(value: &Value, narrow: impl Fn(f64) -> T, finite: impl Fn(&T) -> bool) -> Option<T> {
    Some(narrow(value.as_f64()?)).filter(finite)
}

fn bytes(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => Some(text.clone().into_bytes()),
        Value::Object(object) if object.len() == 1 => {
            BASE64.decode(object.get("b64")?.as_str()?).ok()
        }
        _ => None,
    }
}

/// A value from outside, short enough for a message.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text '{}'", shown(text)),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".into(),
    }
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
