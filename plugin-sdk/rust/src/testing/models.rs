use std::rc::Rc;

use super::current;
use crate::models::{Error, ModelInfo, Options, Tensor};

pub(super) type Model = Rc<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>, Error>>;

pub(crate) fn infer(
    name: &str,
    inputs: Vec<Tensor>,
    options: &Options,
) -> Result<Vec<Tensor>, Error> {
    let host = current().map_err(Error::Internal)?;
    let model = host.models.borrow().get(name).cloned();
    let model =
        model.ok_or_else(|| Error::NotGranted(format!("no grant to infer models '{name}'")))?;
    let outputs = model(&inputs)?;
    if options.outputs.is_empty() {
        return Ok(outputs);
    }
    options
        .outputs
        .iter()
        .map(|wanted| {
            let output = outputs.iter().find(|tensor| tensor.name == *wanted);
            output
                .cloned()
                .ok_or_else(|| Error::InvalidInput(format!("there is no output '{wanted}'")))
        })
        .collect()
}

pub(crate) fn describe(name: &str) -> Result<ModelInfo, Error> {
    let host = current().map_err(Error::Internal)?;
    if !host.models.borrow().contains_key(name) {
        return Err(Error::NotGranted(format!(
            "no grant to describe models '{name}'"
        )));
    }
    Ok(ModelInfo {
        name: name.to_owned(),
        version: "1".to_owned(),
        platform: "fake".to_owned(),
        inputs: Vec::new(),
        outputs: Vec::new(),
    })
}
