use std::time::Duration;

use super::bindings::stepwell::model::inference as wit;
use crate::models::{Datatype, Error, ModelInfo, Options, Tensor, TensorInfo};

pub(crate) fn infer(
    model: &str,
    inputs: Vec<Tensor>,
    options: &Options,
) -> Result<Vec<Tensor>, Error> {
    let inputs: Vec<_> = inputs
        .into_iter()
        .map(|tensor| wit::Tensor {
            name: tensor.name,
            datatype: datatype_out(tensor.datatype),
            shape: tensor.shape,
            data: tensor.data,
        })
        .collect();
    let options = wit::InferOptions {
        signature: options.signature.clone(),
        outputs: options.outputs.clone(),
        deadline_ms: options
            .deadline
            .map(|deadline| u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX)),
    };
    let outputs = wit::infer(model, &inputs, &options).map_err(error)?;
    Ok(outputs
        .into_iter()
        .map(|tensor| Tensor {
            name: tensor.name,
            datatype: datatype_in(tensor.datatype),
            shape: tensor.shape,
            data: tensor.data,
        })
        .collect())
}

pub(crate) fn describe(model: &str) -> Result<ModelInfo, Error> {
    let info = wit::describe(model).map_err(error)?;
    Ok(ModelInfo {
        name: info.name,
        version: info.version,
        platform: info.platform,
        inputs: info.inputs.into_iter().map(tensor_info).collect(),
        outputs: info.outputs.into_iter().map(tensor_info).collect(),
    })
}

fn tensor_info(info: wit::TensorInfo) -> TensorInfo {
    TensorInfo {
        name: info.name,
        datatype: datatype_in(info.datatype),
        shape: info.shape,
    }
}

macro_rules! datatypes {
    ($($name:ident),*) => {
        fn datatype_out(datatype: Datatype) -> wit::Datatype {
            match datatype { $(Datatype::$name => wit::Datatype::$name),* }
        }
        fn datatype_in(datatype: wit::Datatype) -> Datatype {
            match datatype { $(wit::Datatype::$name => Datatype::$name),* }
        }
    };
}
datatypes!(
    Boolean, U8, U16, U32, U64, S8, S16, S32, S64, F16, Bf16, F32, F64, Bytes
);

fn error(error: wit::Error) -> Error {
    match error {
        wit::Error::NotFound(what) => Error::NotFound(what),
        wit::Error::NotGranted(what) => Error::NotGranted(what),
        wit::Error::InvalidInput(what) => Error::InvalidInput(what),
        wit::Error::Unavailable(what) => Error::Unavailable(what),
        wit::Error::Overloaded(after) => Error::Overloaded(after.map(Duration::from_millis)),
        wit::Error::DeadlineExceeded => Error::DeadlineExceeded,
        wit::Error::Internal(what) => Error::Internal(what),
    }
}
