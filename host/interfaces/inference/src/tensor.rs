use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use crate::InferError;

/// The signature that is run when none is named.
pub const DEFAULT_SIGNATURE: &str = "serving_default";

/// Dimensions of the largest tensor that is accepted.
pub(crate) const MAX_RANK: usize = 16;

/// What a tensor's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(
    missing_docs,
    reason = "the names say it; the WIT file has each one's layout"
)]
pub enum DataType {
    Boolean,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    Bf16,
    F32,
    F64,
    Bytes,
}

impl DataType {
    /// The word in messages and in the API; the WIT enum has the same.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Boolean => "boolean",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::S8 => "s8",
            Self::S16 => "s16",
            Self::S32 => "s32",
            Self::S64 => "s64",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Bytes => "bytes",
        }
    }

    /// Bytes of one element; none for `bytes`, whose elements differ.
    pub fn size(self) -> Option<usize> {
        match self {
            Self::Boolean | Self::U8 | Self::S8 => Some(1),
            Self::U16 | Self::S16 | Self::F16 | Self::Bf16 => Some(2),
            Self::U32 | Self::S32 | Self::F32 => Some(4),
            Self::U64 | Self::S64 | Self::F64 => Some(8),
            Self::Bytes => None,
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A tensor with its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in the signature.
    pub name: String,
    /// What its elements are.
    pub datatype: DataType,
    /// Its dimensions, outermost first.
    pub shape: Vec<i64>,
    /// The elements, row-major and little-endian; for `bytes` each a u32 length, then its bytes.
    pub data: Vec<u8>,
}

/// What a model takes or gives under one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    /// Its name in the signature.
    pub name: String,
    /// What its elements are.
    pub datatype: DataType,
    /// Its dimensions, outermost first, -1: any size; none: any number of dimensions.
    pub shape: Option<Vec<i64>>,
}

/// What can be run: named inputs to named outputs, both sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Signature {
    /// What it takes.
    pub inputs: Vec<TensorInfo>,
    /// What it gives.
    pub outputs: Vec<TensorInfo>,
}

impl Signature {
    /// The inputs in the signature's order, once each of them is found to fit it.
    ///
    /// # Errors
    /// [`InferError::InvalidInput`], which says what was given and what is wanted.
    pub(crate) fn accept(&self, mut inputs: Vec<Tensor>) -> Result<Vec<Tensor>, InferError> {
        for (at, tensor) in inputs.iter().enumerate() {
            if !self.inputs.iter().any(|info| info.name == tensor.name) {
                return Err(InferError::InvalidInput(format!(
                    "there is no input '{}', the inputs are {}",
                    shown(&tensor.name),
                    names(&self.inputs)
                )));
            }
            if inputs
                .iter()
                .skip(at + 1)
                .any(|other| other.name == tensor.name)
            {
                return Err(InferError::InvalidInput(format!(
                    "input '{}' is given twice",
                    tensor.name
                )));
            }
        }
        self.inputs
            .iter()
            .map(|info| {
                let at = inputs.iter().position(|tensor| tensor.name == info.name);
                let tensor = at.map(|at| inputs.swap_remove(at)).ok_or_else(|| {
                    InferError::InvalidInput(format!(
                        "input '{}' is missing, the inputs are {}",
                        info.name,
                        names(&self.inputs)
                    ))
                })?;
                info.accept(&tensor)?;
                Ok(tensor)
            })
            .collect()
    }

    /// The indexes of the outputs that are wanted, all if none is named.
    ///
    /// # Errors
    /// [`InferError::InvalidInput`] for one that is not there or is named twice.
    pub(crate) fn choose(&self, wanted: &[String]) -> Result<Vec<usize>, InferError> {
        if wanted.is_empty() {
            return Ok((0..self.outputs.len()).collect());
        }
        let mut seen = BTreeSet::new();
        wanted
            .iter()
            .map(|name| {
                let at = self.outputs.iter().position(|info| info.name == *name);
                let at = at.ok_or_else(|| {
                    InferError::InvalidInput(format!(
                        "there is no output '{}', the outputs are {}",
                        shown(name),
                        names(&self.outputs)
                    ))
                })?;
                if !seen.insert(at) {
                    return Err(InferError::InvalidInput(format!(
                        "output '{name}' is asked for twice"
                    )));
                }
                Ok(at)
            })
            .collect()
    }
}

impl TensorInfo {
    fn accept(&self, tensor: &Tensor) -> Result<(), InferError> {
        let refuse = |what: String| {
            Err(InferError::InvalidInput(format!(
                "input '{}' {what}",
                self.name
            )))
        };
        if tensor.datatype != self.datatype {
            return refuse(format!(
                "is {}, the model wants {}",
                tensor.datatype, self.datatype
            ));
        }
        if tensor.shape.len() > MAX_RANK {
            return refuse(format!(
                "has {} dimensions, at most {MAX_RANK} are accepted",
                tensor.shape.len()
            ));
        }
        if let Some(dimension) = tensor.shape.iter().find(|dimension| **dimension < 1) {
            return refuse(format!(
                "has the shape {:?}, where {dimension} is no size: each dimension is at least 1",
                tensor.shape
            ));
        }
        if let Some(wanted) = &self.shape {
            let fits = wanted.len() == tensor.shape.len()
                && (wanted.iter().zip(&tensor.shape))
                    .all(|(wanted, given)| *wanted < 0 || wanted == given);
            if !fits {
                return refuse(format!(
                    "has the shape {:?}, the model wants {wanted:?}{}",
                    tensor.shape,
                    if wanted.iter().any(|size| *size < 0) {
                        " (-1: any size)"
                    } else {
                        ""
                    }
                ));
            }
        }
        let Some(count) = element_count(&tensor.shape) else {
            return refuse(format!(
                "has the shape {:?}, which is too large",
                tensor.shape
            ));
        };
        match self.datatype.size() {
            Some(size) => {
                if count.checked_mul(size) != Some(tensor.data.len()) {
                    return refuse(format!(
                        "has {} bytes of data, but {count} elements of {} in the shape {:?} are {} bytes",
                        tensor.data.len(),
                        self.datatype,
                        tensor.shape,
                        count as u128 * size as u128,
                    ));
                }
                if self.datatype == DataType::Boolean
                    && let Some(byte) = tensor.data.iter().find(|byte| **byte > 1)
                {
                    return refuse(format!("has the byte {byte}, but booleans are 0 or 1"));
                }
            }
            None => {
                let mut elements = Strings::new(&tensor.data);
                let found = elements.by_ref().take(count.saturating_add(1)).count();
                if elements.malformed() {
                    return refuse(format!(
                        "has {} bytes of data that end within element {found}: each element is a u32 length, then its bytes",
                        tensor.data.len(),
                    ));
                }
                if found != count {
                    return refuse(format!(
                        "has {} elements of data, but the shape {:?} has {count}",
                        if found > count {
                            format!("more than {count}")
                        } else {
                            found.to_string()
                        },
                        tensor.shape
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The number of elements of a shape with no negative dimension, if it can be counted.
pub(crate) fn element_count(shape: &[i64]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |count, size| {
        count.checked_mul(usize::try_from(*size).ok()?)
    })
}

/// The elements of a `bytes` tensor's data: each a u32 length, then its bytes.
pub(crate) struct Strings<'a> {
    rest: &'a [u8],
    malformed: bool,
}

impl<'a> Strings<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self {
            rest: data,
            malformed: false,
        }
    }

    /// Whether the data ended within an element.
    pub(crate) fn malformed(&self) -> bool {
        self.malformed
    }

    /// Adds an element to such data.
    ///
    /// # Errors
    /// The element's size, if a u32 cannot say it.
    pub(crate) fn push(data: &mut Vec<u8>, element: &[u8]) -> Result<(), usize> {
        let length = u32::try_from(element.len()).map_err(|_| element.len())?;
        data.extend_from_slice(&length.to_le_bytes());
        data.extend_from_slice(element);
        Ok(())
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() || self.malformed {
            return None;
        }
        let element = self
            .rest
            .split_first_chunk::<4>()
            .and_then(|(length, rest)| {
                let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
                rest.split_at_checked(length)
            });
        match element {
            Some((element, rest)) => {
                self.rest = rest;
                Some(element)
            }
            None => {
                self.malformed = true;
                None
            }
        }
    }
}

/// A name from outside, short enough for a message.
pub(crate) fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(100).collect()
}

fn names(infos: &[TensorInfo]) -> String {
    infos
        .iter()
        .map(|info| format!("'{}'", info.name))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(datatype: DataType, shape: Option<Vec<i64>>) -> Signature {
        Signature {
            inputs: vec![TensorInfo {
                name: "x".into(),
                datatype,
                shape,
            }],
            outputs: vec![],
        }
    }

    fn tensor(datatype: DataType, shape: &[i64], data: &[u8]) -> Tensor {
        Tensor {
            name: "x".into(),
            datatype,
            shape: shape.to_vec(),
            data: data.to_vec(),
        }
    }

    fn refusal(signature: &Signature, tensor: Tensor) -> String {
        match signature.accept(vec![tensor]) {
            Err(InferError::InvalidInput(message)) => message,
            other => panic!("accepted: {other:?}"),
        }
    }

    #[test]
    fn what_fits_is_accepted_in_the_signatures_order() {
        let info = |name: &str| TensorInfo {
            name: name.into(),
            datatype: DataType::U8,
            shape: Some(vec![-1, 2]),
        };
        let signature = Signature {
            inputs: vec![info("a"), info("b")],
            outputs: vec![],
        };
        let named = |name: &str| Tensor {
            name: name.into(),
            ..tensor(DataType::U8, &[1, 2], &[1, 2])
        };
        let accepted = signature.accept(vec![named("b"), named("a")]).unwrap();
        assert_eq!(accepted[0].name, "a");
        assert_eq!(accepted[1].name, "b");
    }

    #[test]
    fn shapes_and_byte_counts_that_lie_are_refused() {
        let any = signature(DataType::F32, None);
        for (shape, data, expected) in [
            (
                vec![2, 2],
                vec![0; 15],
                "15 bytes of data, but 4 elements of f32",
            ),
            (vec![0], vec![], "0 is no size"),
            (vec![-1], vec![0; 4], "-1 is no size"),
            (vec![i64::MAX, i64::MAX], vec![0; 4], "too large"),
            (vec![i64::MAX], vec![0; 4], "4 bytes of data"),
            (vec![1; 17], vec![0; 4], "17 dimensions"),
        ] {
            let message = refusal(&any, tensor(DataType::F32, &shape, &data));
            assert!(message.contains(expected), "{message}");
        }
        let fixed = signature(DataType::F32, Some(vec![-1, 8, 8]));
        let message = refusal(&fixed, tensor(DataType::F32, &[8, 8], &[0; 256]));
        assert_eq!(
            message,
            "input 'x' has the shape [8, 8], the model wants [-1, 8, 8] (-1: any size)"
        );
    }

    #[test]
    fn strings_must_end_where_the_data_ends() {
        let strings = signature(DataType::Bytes, Some(vec![-1]));
        let good = [1, 0, 0, 0, 0xff, 0, 0, 0, 0];
        assert!(
            strings
                .accept(vec![tensor(DataType::Bytes, &[2], &good)])
                .is_ok()
        );
        for (shape, data, expected) in [
            (vec![1], &good[..], "more than 1 elements"),
            (
                vec![3],
                &good[..],
                "2 elements of data, but the shape [3] has 3",
            ),
            (vec![2], &good[..8], "end within element 1"),
            (
                vec![1],
                &[255, 255, 255, 255, 1][..],
                "end within element 0",
            ),
            (vec![i64::MAX], &good[..], "2 elements of data"),
        ] {
            let message = refusal(&strings, tensor(DataType::Bytes, &shape, data));
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn booleans_are_0_or_1() {
        let message = refusal(
            &signature(DataType::Boolean, Some(vec![2])),
            tensor(DataType::Boolean, &[2], &[1, 2]),
        );
        assert!(message.contains("has the byte 2"), "{message}");
    }

    #[test]
    fn names_and_datatypes_must_fit() {
        let signature = signature(DataType::F32, Some(vec![1]));
        let good = tensor(DataType::F32, &[1], &[0; 4]);
        let message = refusal(
            &signature,
            Tensor {
                name: "../x".into(),
                ..good.clone()
            },
        );
        assert_eq!(message, "there is no input '../x', the inputs are 'x'");
        let message = refusal(&signature, tensor(DataType::F64, &[1], &[0; 8]));
        assert_eq!(message, "input 'x' is f64, the model wants f32");
        assert!(signature.accept(vec![good.clone(), good]).is_err());
        assert!(signature.accept(vec![]).is_err());
    }
}
