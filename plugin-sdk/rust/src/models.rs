//! Runs the models that the pipeline grants (`stepwell:model/inference`).
//!
//! ```yaml
//! grants: {models: {digits: [infer]}}
//! ```
//! ```
//! # use stepwell_sdk::{Error, models::{self, Tensor}};
//! fn classify(pixels: &[f32]) -> Result<Vec<f32>, Error> {
//!     let image = Tensor::new("image", [1, 8, 8], pixels)?;
//!     let outputs = models::infer("digits", vec![image])?;
//!     Ok(outputs.get("probabilities")?.values()?)
//! }
//! # let host = stepwell_sdk::testing::Host::new()
//! #     .model("digits", |_| Ok(vec![Tensor::new("probabilities", [1, 2], &[0.25f32, 0.75])?]));
//! # assert_eq!(host.call(|| classify(&[0.0; 64])).unwrap(), [0.25, 0.75]);
//! ```

use std::fmt;
use std::time::Duration;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Datatype {
    /// One byte, 0 or 1.
    Boolean,
    /// Unsigned, 8 bits.
    U8,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 64 bits.
    U64,
    /// Signed, 8 bits.
    S8,
    /// Signed, 16 bits.
    S16,
    /// Signed, 32 bits.
    S32,
    /// Signed, 64 bits.
    S64,
    /// IEEE 754 half precision.
    F16,
    /// Brain floating point: the upper half of an `f32`.
    Bf16,
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 double precision.
    F64,
    /// Byte strings, each as its length (`u32`) and its bytes.
    Bytes,
}

/// A named, shaped block of numbers: row-major, little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The model's name for this input or output.
    pub name: String,
    /// What the elements are.
    pub datatype: Datatype,
    /// Length of each dimension.
    pub shape: Vec<i64>,
    /// The elements.
    pub data: Vec<u8>,
}

impl Tensor {
    /// A tensor of numbers or booleans.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if there are not as many values as the shape says.
    pub fn new<T: Element>(
        name: impl Into<String>,
        shape: impl Into<Vec<i64>>,
        values: &[T],
    ) -> Result<Self, Error> {
        let mut data = Vec::with_capacity(std::mem::size_of_val(values));
        for value in values {
            value.write(&mut data);
        }
        Self::checked(name.into(), T::DATATYPE, shape.into(), values.len(), data)
    }

    /// A tensor of byte strings.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if there are not as many values as the shape says.
    pub fn bytes<B: AsRef<[u8]>>(
        name: impl Into<String>,
        shape: impl Into<Vec<i64>>,
        values: &[B],
    ) -> Result<Self, Error> {
        let mut data = Vec::new();
        for value in values {
            let value = value.as_ref();
            let length = u32::try_from(value.len())
                .map_err(|_| Error::InvalidInput("a byte string of 4 GiB or more".into()))?;
            data.extend_from_slice(&length.to_le_bytes());
            data.extend_from_slice(value);
        }
        Self::checked(
            name.into(),
            Datatype::Bytes,
            shape.into(),
            values.len(),
            data,
        )
    }

    /// The elements, in row-major order.
    ///
    /// # Errors
    /// [`Error::Internal`] if the elements are of another type.
    pub fn values<T: Element>(&self) -> Result<Vec<T>, Error> {
        self.expect(T::DATATYPE)?;
        Ok(self
            .data
            .chunks_exact(size_of::<T>())
            .filter_map(T::read)
            .collect())
    }

    /// The elements of a tensor of byte strings.
    ///
    /// # Errors
    /// [`Error::Internal`] if the elements are of another type, or cut off.
    pub fn byte_values(&self) -> Result<Vec<Vec<u8>>, Error> {
        self.expect(Datatype::Bytes)?;
        let cut = || {
            Error::Internal(format!(
                "the byte strings of tensor '{}' are cut off",
                self.name
            ))
        };
        let mut values = Vec::new();
        let mut rest = self.data.as_slice();
        while !rest.is_empty() {
            let (length, after) = rest.split_first_chunk().ok_or_else(cut)?;
            let length = u32::from_le_bytes(*length) as usize;
            let (value, after) = after.split_at_checked(length).ok_or_else(cut)?;
            values.push(value.to_vec());
            rest = after;
        }
        Ok(values)
    }

    fn checked(
        name: String,
        datatype: Datatype,
        shape: Vec<i64>,
        count: usize,
        data: Vec<u8>,
    ) -> Result<Self, Error> {
        let wanted = shape.iter().try_fold(1usize, |product, dimension| {
            product.checked_mul(usize::try_from(*dimension).ok()?)
        });
        if wanted != Some(count) {
            return Err(Error::InvalidInput(format!(
                "tensor '{name}' of shape {shape:?} has {count} values"
            )));
        }
        Ok(Self {
            name,
            datatype,
            shape,
            data,
        })
    }

    fn expect(&self, datatype: Datatype) -> Result<(), Error> {
        if self.datatype == datatype {
            return Ok(());
        }
        Err(Error::Internal(format!(
            "tensor '{}' is {:?}, not {datatype:?}",
            self.name, self.datatype
        )))
    }
}

/// A Rust type that is the element of a tensor.
pub trait Element: Copy + sealed::Sealed {
    /// Its name in the interface.
    const DATATYPE: Datatype;

    #[doc(hidden)]
    fn write(self, out: &mut Vec<u8>);
    #[doc(hidden)]
    fn read(bytes: &[u8]) -> Option<Self>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($rust:ty => $datatype:ident),*) => {$(
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const DATATYPE: Datatype = Datatype::$datatype;
            fn write(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn read(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(<$rust>::from_le_bytes)
            }
        }
    )*};
}
elements!(u8 => U8, u16 => U16, u32 => U32, u64 => U64, i8 => S8, i16 => S16, i32 => S32, i64 => S64, f32 => F32, f64 => F64);

impl sealed::Sealed for bool {}
impl Element for bool {
    const DATATYPE: Datatype = Datatype::Boolean;
    fn write(self, out: &mut Vec<u8>) {
        out.push(self.into());
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        bytes.first().map(|byte| *byte != 0)
    }
}

/// What a model answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outputs(Vec<Tensor>);

impl Outputs {
    /// The output with this name.
    ///
    /// # Errors
    /// [`Error::Internal`] if there is none; it says which there are.
    pub fn get(&self, name: &str) -> Result<&Tensor, Error> {
        self.0
            .iter()
            .find(|tensor| tensor.name == name)
            .ok_or_else(|| {
                let names: Vec<_> = self.0.iter().map(|tensor| tensor.name.as_str()).collect();
                Error::Internal(format!("the model gave no output '{name}' but {names:?}"))
            })
    }

    /// All outputs.
    pub fn into_inner(self) -> Vec<Tensor> {
        self.0
    }
}

impl From<Vec<Tensor>> for Outputs {
    fn from(tensors: Vec<Tensor>) -> Self {
        Self(tensors)
    }
}

/// What [`infer_with`] may be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The model's signature; none: its default.
    pub signature: Option<String>,
    /// The outputs that are wanted; empty: all.
    pub outputs: Vec<String>,
    /// The longest time to wait; the step's own deadline holds in any case.
    pub deadline: Option<Duration>,
}

/// Name, type and shape of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub datatype: Datatype,
    /// Length of each dimension; -1: any.
    pub shape: Vec<i64>,
}

/// What a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// The granted name.
    pub name: String,
    /// The version that answers.
    pub version: String,
    /// What runs it, such as `tensorflow`.
    pub platform: String,
    /// What it takes.
    pub inputs: Vec<TensorInfo>,
    /// What it gives.
    pub outputs: Vec<TensorInfo>,
}

/// Why a model did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no such model, version, signature or output.
    NotFound(String),
    /// The pipeline does not grant it to this step.
    NotGranted(String),
    /// The inputs do not fit the model's signature.
    InvalidInput(String),
    /// The model is not loaded or its server does not answer; later may help.
    Unavailable(String),
    /// Too many requests wait already; try again after this time, if one is known.
    Overloaded(Option<Duration>),
    /// The time was up.
    DeadlineExceeded,
    /// The model itself failed.
    Internal(String),
}

impl Error {
    /// Whether trying again later may help.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_) | Self::Overloaded(_) | Self::DeadlineExceeded
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(what) => write!(f, "model not found: {what}"),
            Self::NotGranted(what) => write!(f, "model not granted: {what}"),
            Self::InvalidInput(what) => write!(f, "invalid model input: {what}"),
            Self::Unavailable(what) => write!(f, "model not available: {what}"),
            Self::Overloaded(Some(after)) => write!(f, "model overloaded, retry after {after:?}"),
            Self::Overloaded(None) => f.write_str("model overloaded"),
            Self::DeadlineExceeded => f.write_str("the model did not answer in time"),
            Self::Internal(what) => write!(f, "model failed: {what}"),
        }
    }
}

impl std::error::Error for Error {}

/// Runs a model on these inputs with its default signature and gives all its outputs. `model` is the name of the grant, with `@VERSION`
/// or `@LABEL` after it where the grant allows that.
///
/// # Errors
/// [`Error`].
pub fn infer(model: &str, inputs: Vec<Tensor>) -> Result<Outputs, Error> {
    infer_with(model, inputs, &Options::default())
}

/// [`infer`] with a signature, with some of the outputs only, or with a deadline.
///
/// # Errors
/// [`Error`].
pub fn infer_with(model: &str, inputs: Vec<Tensor>, options: &Options) -> Result<Outputs, Error> {
    crate::host::models::infer(model, inputs, options).map(Outputs)
}

/// What the model is, takes and gives. Needs the grant `describe`.
///
/// # Errors
/// [`Error`].
pub fn describe(model: &str) -> Result<ModelInfo, Error> {
    crate::host::models::describe(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_the_way_through_bytes() {
        let floats = Tensor::new("x", [1, 2], &[1.5f32, -0.0]).unwrap();
        assert_eq!(floats.datatype, Datatype::F32);
        assert_eq!(floats.data, [0, 0, 0xc0, 0x3f, 0, 0, 0, 0x80]);
        assert_eq!(floats.values::<f32>().unwrap(), [1.5, -0.0]);
        assert_eq!(
            Tensor::new("x", [2], &[true, false])
                .unwrap()
                .values::<bool>()
                .unwrap(),
            [true, false]
        );
        assert_eq!(
            Tensor::new("x", [], &[i64::MIN])
                .unwrap()
                .values::<i64>()
                .unwrap(),
            [i64::MIN]
        );
    }

    #[test]
    fn byte_strings_survive_and_cut_ones_are_refused() {
        let mut tensor = Tensor::bytes("x", [2], &["ab", ""]).unwrap();
        assert_eq!(tensor.byte_values().unwrap(), [b"ab".to_vec(), vec![]]);
        tensor.data.truncate(5);
        assert!(matches!(tensor.byte_values(), Err(Error::Internal(_))));
    }

    #[test]
    fn a_shape_that_lies_and_another_type_are_refused() {
        for shape in [vec![3], vec![-2], vec![i64::MAX, i64::MAX], vec![]] {
            assert!(matches!(
                Tensor::new("x", shape, &[1u8, 2]),
                Err(Error::InvalidInput(_))
            ));
        }
        let tensor = Tensor::new("x", [2], &[1u8, 2]).unwrap();
        assert!(matches!(tensor.values::<i8>(), Err(Error::Internal(_))));
        assert!(matches!(tensor.byte_values(), Err(Error::Internal(_))));
    }

    #[test]
    fn a_missing_output_is_named_with_those_there_are() {
        let outputs = Outputs::from(vec![Tensor::new("a", [0], &[0u8; 0]).unwrap()]);
        assert!(outputs.get("a").is_ok());
        assert!(
            outputs
                .get("b")
                .unwrap_err()
                .to_string()
                .contains(r#"'b' but ["a"]"#)
        );
    }
}
