//! Tensors' values between our bytes and libtensorflow's memory, for each datatype.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ffi::{c_char, c_int, c_void};
use std::fmt;
use std::mem::size_of;

use half::f16;
use tensorflow::{
    BFloat16, Code, FetchToken, Operation, SessionRunArgs, Status, TensorDataNoCRepr, TensorType,
};
use tensorflow_sys_runtime::{
    TF_DataType, TF_NewTensor, TF_StringCopy, TF_StringDealloc, TF_StringGetDataPointer,
    TF_StringGetSize, TF_StringInit, TF_TString, TF_Tensor,
};

use crate::tensor::Strings;
use crate::{DataType, RunError, Tensor};

/// A tensor in libtensorflow's memory, of whichever datatype.
pub(crate) trait Feed {
    /// Feeds it to an output of an operation.
    fn feed<'l>(&'l self, args: &mut SessionRunArgs<'l>, operation: &Operation, index: c_int);
}

impl<T: TensorType> Feed for tensorflow::Tensor<T> {
    fn feed<'l>(&'l self, args: &mut SessionRunArgs<'l>, operation: &Operation, index: c_int) {
        args.add_feed(operation, index, self);
    }
}

/// What libtensorflow calls the datatype.
pub(crate) fn native(datatype: DataType) -> tensorflow::DataType {
    struct Native;
    impl Visit for Native {
        type Output = tensorflow::DataType;
        fn visit<T: Element>(self) -> Self::Output {
            T::data_type()
        }
    }
    visit(datatype, Native)
}

/// Copies a tensor, whose byte count has been checked, into libtensorflow's memory.
pub(crate) fn copy_in(tensor: &Tensor) -> Box<dyn Feed> {
    struct CopyIn<'a>(&'a Tensor);
    impl Visit for CopyIn<'_> {
        type Output = Box<dyn Feed>;
        fn visit<T: Element>(self) -> Self::Output {
            let dimensions: Vec<u64> = self
                .0
                .shape
                .iter()
                .map(|size| size.unsigned_abs())
                .collect();
            let mut native = tensorflow::Tensor::<T>::new(&dimensions);
            T::read(&self.0.data, &mut native);
            Box::new(native)
        }
    }
    visit(tensor.datatype, CopyIn(tensor))
}

/// Copies an output of a finished run, of this datatype, out of libtensorflow's memory.
///
/// # Errors
/// [`RunError::Failed`]: the output is of another datatype, or larger than `limit` bytes.
pub(crate) fn copy_out(
    args: &mut SessionRunArgs<'_>,
    token: FetchToken,
    datatype: DataType,
    limit: usize,
) -> Result<(Vec<i64>, Vec<u8>), RunError> {
    struct CopyOut<'a, 'l>(&'a mut SessionRunArgs<'l>, FetchToken, usize);
    impl Visit for CopyOut<'_, '_> {
        type Output = Result<(Vec<i64>, Vec<u8>), RunError>;
        fn visit<T: Element>(self) -> Self::Output {
            let failed = |error: String| RunError::Failed(error);
            let native = self
                .0
                .fetch::<T>(self.1)
                .map_err(|error| failed(error.to_string()))?;
            let shape: Vec<i64> = (native.dims().iter())
                .map(|size| i64::try_from(*size).unwrap_or(i64::MAX))
                .collect();
            // Nothing may be read from a tensor without elements: it has no memory.
            let count = crate::tensor::element_count(&shape).unwrap_or(usize::MAX);
            if count == 0 {
                return Ok((shape, Vec::new()));
            }
            let too_large = || {
                failed(format!(
                    "an output is larger than {limit} bytes",
                    limit = self.2
                ))
            };
            if count > self.2 {
                return Err(too_large());
            }
            let data = T::write(&native, self.2).ok_or_else(too_large)?;
            Ok((shape, data))
        }
    }
    visit(datatype, CopyOut(args, token, limit))
}

/// A type of element with its bytes.
trait Element: TensorType {
    /// Fills `elements` from bytes of exactly that many elements.
    fn read(bytes: &[u8], elements: &mut [Self]);

    /// The elements' bytes; none: they are more than `limit`.
    fn write(elements: &[Self], limit: usize) -> Option<Vec<u8>>;
}

macro_rules! element {
    ($type:ty, $from:expr, $to:expr) => {
        impl Element for $type {
            fn read(bytes: &[u8], elements: &mut [Self]) {
                for (element, bytes) in elements.iter_mut().zip(bytes.as_chunks().0) {
                    *element = $from(*bytes);
                }
            }

            fn write(elements: &[Self], limit: usize) -> Option<Vec<u8>> {
                let size = elements.len().checked_mul(size_of::<Self>())?;
                if size > limit {
                    return None;
                }
                let mut data = vec![0; size];
                for (bytes, element) in data.as_chunks_mut().0.iter_mut().zip(elements) {
                    *bytes = $to(*element);
                }
                Some(data)
            }
        }
    };
    ($($type:ty),*) => {
        $(element!($type, <$type>::from_le_bytes, <$type>::to_le_bytes);)*
    };
}

element!(u8, u16, u32, u64, i8, i16, i32, i64, f16, f32, f64);
element!(bool, |byte: [u8; 1]| byte != [0], |value: bool| [u8::from(
    value
)]);
// The crate's type opens only by way of f32, whose upper half it is: nothing is rounded.
element!(
    BFloat16,
    |bytes: [u8; 2]| BFloat16::from(f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)),
    |value: BFloat16| {
        let [_, _, low, high] = f32::from(value).to_bits().to_le_bytes();
        [low, high]
    }
);

impl Element for Binary {
    fn read(bytes: &[u8], elements: &mut [Self]) {
        for (element, bytes) in elements.iter_mut().zip(Strings::new(bytes)) {
            element.0 = bytes.to_owned();
        }
    }

    fn write(elements: &[Self], limit: usize) -> Option<Vec<u8>> {
        let mut data = Vec::new();
        for element in elements {
            Strings::push(&mut data, &element.0).ok()?;
            if data.len() > limit {
                return None;
            }
        }
        Some(data)
    }
}

/// Something that is done for one of the element types.
trait Visit {
    type Output;
    fn visit<T: Element>(self) -> Self::Output;
}

fn visit<V: Visit>(datatype: DataType, visitor: V) -> V::Output {
    match datatype {
        DataType::Boolean => visitor.visit::<bool>(),
        DataType::U8 => visitor.visit::<u8>(),
        DataType::U16 => visitor.visit::<u16>(),
        DataType::U32 => visitor.visit::<u32>(),
        DataType::U64 => visitor.visit::<u64>(),
        DataType::S8 => visitor.visit::<i8>(),
        DataType::S16 => visitor.visit::<i16>(),
        DataType::S32 => visitor.visit::<i32>(),
        DataType::S64 => visitor.visit::<i64>(),
        DataType::F16 => visitor.visit::<f16>(),
        DataType::Bf16 => visitor.visit::<BFloat16>(),
        DataType::F32 => visitor.visit::<f32>(),
        DataType::F64 => visitor.visit::<f64>(),
        DataType::Bytes => visitor.visit::<Binary>(),
    }
}

/// A string of any bytes. The crate's own `Tensor<String>` panics on what is not UTF-8.
#[derive(Clone, Debug, Default)]
pub(crate) struct Binary(Vec<u8>);

impl fmt::Display for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

impl TensorType for Binary {
    type InnerType = TensorDataNoCRepr<Self>;

    fn data_type() -> tensorflow::DataType {
        tensorflow::DataType::String
    }

    fn zero() -> Self {
        Self::default()
    }

    fn one() -> Self {
        Self(vec![1])
    }

    fn is_repr_c() -> bool {
        false
    }

    fn unpack(data: &[u8], count: usize) -> Result<Vec<Self>, Status> {
        let strings = data.as_ptr().cast::<TF_TString>();
        if data.len() / size_of::<TF_TString>() < count || !strings.is_aligned() {
            return Err(Status::new_set_lossy(
                Code::Internal,
                "not as many strings as elements",
            ));
        }
        Ok((0..count)
            .map(|at| {
                #[allow(unsafe_code, reason = "strings are opaque outside the C API")]
                // SAFETY: `data` is the memory of a string tensor, which is `count` aligned `TF_TString`s or more, each of
                // which gives out the bytes it holds for as long as the tensor lives.
                unsafe {
                    let string = strings.add(at);
                    match TF_StringGetSize(string) {
                        0 => Self::default(),
                        size => {
                            let bytes = TF_StringGetDataPointer(string).cast::<u8>();
                            Self(std::slice::from_raw_parts(bytes, size).to_owned())
                        }
                    }
                }
            })
            .collect())
    }

    fn pack(data: &[Self], dimensions: &[u64]) -> Result<*mut TF_Tensor, Status> {
        let refuse = |what| Status::new_set_lossy(Code::Internal, what);
        let layout = Layout::array::<TF_TString>(data.len().max(1))
            .map_err(|_| refuse("too many strings"))?;
        let rank = c_int::try_from(dimensions.len()).map_err(|_| refuse("too many dimensions"))?;
        #[allow(unsafe_code, reason = "strings are opaque outside the C API")]
        // SAFETY: the memory has room for every string, each of which is initialised before it is set and copies its
        // bytes. The tensor owns the memory from then on and gives it to `free_strings`, with the same layout.
        unsafe {
            let memory = alloc(layout);
            if memory.is_null() {
                handle_alloc_error(layout);
            }
            let strings = memory.cast::<TF_TString>();
            for (at, element) in data.iter().enumerate() {
                let string = strings.add(at);
                TF_StringInit(string);
                TF_StringCopy(string, element.0.as_ptr().cast::<c_char>(), element.0.len());
            }
            let tensor = TF_NewTensor(
                TF_DataType::TF_STRING,
                dimensions.as_ptr().cast::<i64>(),
                rank,
                memory.cast::<c_void>(),
                size_of_val(data),
                Some(free_strings),
                std::ptr::null_mut(),
            );
            if tensor.is_null() {
                free_strings(memory.cast(), size_of_val(data), std::ptr::null_mut());
                return Err(refuse("no tensor of strings could be made"));
            }
            Ok(tensor)
        }
    }
}

#[allow(unsafe_code, reason = "called by libtensorflow")]
/// # Safety
/// `memory` is what [`Binary::pack`] allocated for `length` bytes of initialised strings.
unsafe extern "C" fn free_strings(memory: *mut c_void, length: usize, _: *mut c_void) {
    let count = length / size_of::<TF_TString>();
    let strings = memory.cast::<TF_TString>();
    for at in 0..count {
        // SAFETY: the caller's promise.
        unsafe { TF_StringDealloc(strings.add(at)) };
    }
    if let Ok(layout) = Layout::array::<TF_TString>(count.max(1)) {
        // SAFETY: the same layout as in `pack`.
        unsafe { dealloc(memory.cast(), layout) };
    }
}
