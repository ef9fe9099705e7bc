//! The built-in `model` step: JSON in, inference, JSON out.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};
use stepwell_core::{ByteSize, Call, ErrorKind, Event, StepError};

use crate::Step;
use crate::spec::{MAX_OUTPUT, ModelSpec};

/// A model that takes and gives nested lists, by tensor name. Called from many tasks at once.
#[async_trait]
pub trait Model: Send + Sync {
    /// The names of the input tensors.
    async fn inputs(&self, call: &Call) -> Result<Vec<String>, StepError>;

    /// Runs the model once. A name that it does not have, a shape or a value that does not fit is [`ErrorKind::Invalid`].
    async fn infer(
        &self,
        call: &Call,
        inputs: Vec<(String, Value)>,
    ) -> Result<Vec<(String, Value)>, StepError>;
}

/// A model as a step: the reply replaces the event's `data`.
pub(crate) struct ModelStep {
    pub(crate) model: Arc<dyn Model>,
    pub(crate) spec: ModelSpec,
}

#[async_trait]
impl Step for ModelStep {
    async fn call(&self, call: &Call, mut event: Event) -> Result<Vec<Event>, StepError> {
        let data: Value = serde_json::from_slice(&event.data)
            .map_err(|error| invalid(format!("the event's data is not JSON: {error}")))?;
        let inputs = self.inputs(call, &data).await?;
        let outputs = self.outputs(self.model.infer(call, inputs).await?)?;
        let reply = Value::Object(outputs).to_string();
        if reply.len() as u64 > MAX_OUTPUT {
            let most = ByteSize(MAX_OUTPUT);
            return Err(StepError::new(
                ErrorKind::Limit,
                format!("the model's reply exceeds {most}"),
            ));
        }
        event.data = reply.into();
        event.datacontenttype = Some("application/json".to_owned());
        Ok(vec![event])
    }
}

impl ModelStep {
    async fn inputs(&self, call: &Call, data: &Value) -> Result<Vec<(String, Value)>, StepError> {
        if !self.spec.inputs.is_empty() {
            let pick = |(tensor, pointer): &(String, String)| match data.pointer(pointer) {
                Some(value) => Ok((tensor.clone(), value.clone())),
                None => Err(invalid(format!(
                    "the event's data has nothing at '{pointer}' for the tensor '{tensor}'"
                ))),
            };
            return self.spec.inputs.iter().map(pick).collect();
        }
        let tensors = self.model.inputs(call).await?;
        tensors
            .into_iter()
            .map(|tensor| match data.get(&tensor) {
                Some(value) => Ok((tensor, value.clone())),
                None => Err(invalid(format!(
                    "the event's data has no member '{tensor}'"
                ))),
            })
            .collect()
    }

    fn outputs(&self, tensors: Vec<(String, Value)>) -> Result<Map<String, Value>, StepError> {
        if self.spec.outputs.is_empty() {
            return Ok(tensors.into_iter().collect());
        }
        self.spec
            .outputs
            .iter()
            .map(|(member, tensor)| {
                let found = tensors.iter().find(|(name, _)| name == tensor);
                let (_, value) =
                    found.ok_or_else(|| invalid(format!("the model has no output '{tensor}'")))?;
                Ok((member.clone(), value.clone()))
            })
            .collect()
    }
}

fn invalid(message: String) -> StepError {
    StepError::new(ErrorKind::Invalid, message)
}
