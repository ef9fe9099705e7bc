use std::collections::{BTreeMap, HashMap};
use std::ffi::c_int;
use std::fs::File;
use std::io::Read as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use stepwell_core::ByteSize;
use tensorflow::{
    Code, Graph, Operation, SavedModelBundle, Session, SessionOptions, SessionRunArgs, Status,
};

use crate::check::{SERVE, check};
use crate::elements::{copy_in, copy_out, native};
use crate::library::Library;
use crate::saved_model::{MetaGraphDef, SignatureDef};
use crate::{Backend, DataType, LoadError, Model, RunError, Signature, Tensor, TensorInfo};

/// `saved_model.pb` of the largest model that is loaded; protobuf itself ends at 2 GiB.
const MAX_GRAPH: u64 = 1 << 30;

/// Bytes of the largest output of a run.
const MAX_OUTPUT: usize = 256 << 20;

/// SavedModels, run by libtensorflow.
pub(crate) struct TensorFlow {
    config: Vec<u8>,
}

impl TensorFlow {
    /// `intra_op` threads work on one op; ops run one after the other.
    pub(crate) fn new(_loaded: Library, intra_op: usize) -> Self {
        let intra_op = u8::try_from(intra_op.clamp(1, 127)).unwrap_or(1);
        // ConfigProto: intra_op_parallelism_threads = 2, inter_op_parallelism_threads = 5.
        Self {
            config: vec![0x10, intra_op, 0x28, 1],
        }
    }

    fn open(&self, directory: &Path, graph: &MetaGraphDef) -> Result<SavedModel, LoadError> {
        let refuse = |error: Status| LoadError(format!("libtensorflow refuses it: {error}"));
        let mut options = SessionOptions::new();
        options.set_config(&self.config).map_err(refuse)?;
        let mut operations = Graph::new();
        let bundle = SavedModelBundle::load(&options, [SERVE], &mut operations, directory)
            .map_err(refuse)?;
        let mut signatures = BTreeMap::new();
        let mut prepared = HashMap::new();
        for (name, definition) in &graph.signature_def {
            if name.starts_with("__saved_model") {
                continue;
            }
            match Prepared::new(definition, &operations) {
                Ok((signature, ports)) => {
                    signatures.insert(name.clone(), signature);
                    prepared.insert(name.clone(), ports);
                }
                Err(error) => {
                    tracing::warn!(signature = %name, %error, "a model's signature cannot be served")
                }
            }
        }
        if signatures.is_empty() {
            return Err(LoadError(
                "the model has no signature that can be served".into(),
            ));
        }
        Ok(SavedModel {
            signatures,
            prepared,
            session: bundle.session,
            _operations: operations,
        })
    }
}

impl Backend for TensorFlow {
    fn platform(&self) -> &'static str {
        "tensorflow_savedmodel"
    }

    fn load(&self, directory: &Path) -> Result<Arc<dyn Model>, LoadError> {
        let graph = check(&read(&directory.join("saved_model.pb"))?)?;
        // TensorFlow would load it, and then fail every run.
        if has_variables(&graph) && !directory.join("variables/variables.index").is_file() {
            return Err(LoadError(
                "the model has variables, but variables/variables.index is missing".into(),
            ));
        }
        // The crate unwraps here and there while it loads.
        let loaded = catch_unwind(AssertUnwindSafe(|| self.open(directory, &graph)))
            .map_err(|_| LoadError("the tensorflow crate panicked on it".into()))?;
        Ok(Arc::new(loaded?))
    }
}

fn has_variables(graph: &MetaGraphDef) -> bool {
    (graph.graph_def.iter().flat_map(|graph| &graph.node))
        .any(|node| matches!(node.op.as_str(), "VarHandleOp" | "VariableV2" | "Variable"))
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let refuse =
        |error: std::io::Error| LoadError(format!("saved_model.pb cannot be read: {error}"));
    let file = File::open(path).map_err(refuse)?;
    let mut bytes = Vec::new();
    file.take(MAX_GRAPH + 1)
        .read_to_end(&mut bytes)
        .map_err(refuse)?;
    if bytes.len() as u64 > MAX_GRAPH {
        return Err(LoadError(format!(
            "saved_model.pb is larger than {}",
            ByteSize(MAX_GRAPH)
        )));
    }
    Ok(bytes)
}

struct SavedModel {
    signatures: BTreeMap<String, Signature>,
    prepared: HashMap<String, Prepared>,
    session: Session,
    /// Operations point into it.
    _operations: Graph,
}

impl Model for SavedModel {
    fn signatures(&self) -> &BTreeMap<String, Signature> {
        &self.signatures
    }

    fn run(
        &self,
        signature: &str,
        inputs: Vec<Tensor>,
        outputs: &[usize],
    ) -> Result<Vec<Tensor>, RunError> {
        let prepared = self
            .prepared
            .get(signature)
            .ok_or_else(|| RunError::Failed(format!("no signature '{signature}'")))?;
        let feeds: Vec<_> = inputs.iter().map(copy_in).collect();
        drop(inputs);
        let mut args = SessionRunArgs::new();
        for (feed, port) in feeds.iter().zip(&prepared.inputs) {
            feed.feed(&mut args, &port.operation, port.index);
        }
        let wanted: Vec<_> = outputs
            .iter()
            .filter_map(|at| prepared.outputs.get(*at))
            .collect();
        let tokens: Vec<_> = wanted
            .iter()
            .map(|port| args.request_fetch(&port.operation, port.index))
            .collect();
        self.session.run(&mut args).map_err(why)?;
        let mut room = MAX_OUTPUT;
        wanted
            .into_iter()
            .zip(tokens)
            .map(|(port, token)| {
                let (shape, data) = copy_out(&mut args, token, port.datatype, room)?;
                room = room.saturating_sub(data.len());
                Ok(Tensor {
                    name: port.name.clone(),
                    datatype: port.datatype,
                    shape,
                    data,
                })
            })
            .collect()
    }
}

/// Where a signature's tensors are in the graph, looked up once.
struct Prepared {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

struct Port {
    name: String,
    datatype: DataType,
    operation: Operation,
    index: c_int,
}

impl Prepared {
    fn new(definition: &SignatureDef, graph: &Graph) -> Result<(Signature, Self), LoadError> {
        let ports = |tensors: &HashMap<String, crate::saved_model::TensorInfo>| {
            let mut found = tensors
                .iter()
                .map(|(name, tensor)| Port::new(name, tensor, graph))
                .collect::<Result<Vec<_>, _>>()?;
            found.sort_by(|(_, one), (_, other)| one.name.cmp(&other.name));
            let (infos, ports): (Vec<_>, Vec<_>) = found.into_iter().unzip();
            Ok::<_, LoadError>((infos, ports))
        };
        let (input_infos, inputs) = ports(&definition.inputs)?;
        let (output_infos, outputs) = ports(&definition.outputs)?;
        if outputs.is_empty() {
            return Err(LoadError("it has no outputs".into()));
        }
        let signature = Signature {
            inputs: input_infos,
            outputs: output_infos,
        };
        Ok((signature, Self { inputs, outputs }))
    }
}

impl Port {
    fn new(
        name: &str,
        tensor: &crate::saved_model::TensorInfo,
        graph: &Graph,
    ) -> Result<(TensorInfo, Self), LoadError> {
        let refuse = |what: &str| LoadError(format!("the tensor '{name}' {what}"));
        let datatype = datatype(tensor.dtype)
            .ok_or_else(|| refuse("is of a datatype that the interface does not have"))?;
        let (operation, index) = tensor
            .name
            .split_once(':')
            .ok_or_else(|| refuse("is sparse or composite, or names no output of an operation"))?;
        let index: u16 = index
            .parse()
            .map_err(|_| refuse("names no output of an operation"))?;
        let operation = graph
            .operation_by_name(operation)
            .ok()
            .flatten()
            .filter(|operation| usize::from(index) < operation.num_outputs())
            .ok_or_else(|| refuse("is not in the graph"))?;
        if operation.output_type(usize::from(index)) != native(datatype) {
            return Err(refuse(
                "has another datatype in the graph than in the signature",
            ));
        }
        let shape = (tensor.tensor_shape.as_ref())
            .filter(|shape| !shape.unknown_rank)
            .map(|shape| shape.dim.iter().map(|dim| dim.size.max(-1)).collect());
        let port = Self {
            name: name.to_owned(),
            datatype,
            operation,
            index: c_int::from(index),
        };
        Ok((
            TensorInfo {
                name: name.to_owned(),
                datatype,
                shape,
            },
            port,
        ))
    }
}

/// TensorFlow's `DataType` numbers.
fn datatype(number: i32) -> Option<DataType> {
    Some(match number {
        1 => DataType::F32,
        2 => DataType::F64,
        3 => DataType::S32,
        4 => DataType::U8,
        5 => DataType::S16,
        6 => DataType::S8,
        7 => DataType::Bytes,
        9 => DataType::S64,
        10 => DataType::Boolean,
        14 => DataType::Bf16,
        17 => DataType::U16,
        19 => DataType::F16,
        22 => DataType::U32,
        23 => DataType::U64,
        _ => return None,
    })
}

/// Whose fault a failed run is. What callers see is the first line, without the names of nodes.
fn why(status: Status) -> RunError {
    let text = status.to_string();
    if !matches!(status.code(), Code::InvalidArgument | Code::OutOfRange) {
        return RunError::Failed(text);
    }
    let message = text
        .split_once(": ")
        .map_or(text.as_str(), |(_, message)| message);
    let message = message.lines().next().unwrap_or_default();
    let message = message.split("[[").next().unwrap_or_default().trim();
    let message = match message.split_once("}} ") {
        Some((node, rest)) if node.starts_with("{{") => rest,
        _ => message,
    };
    RunError::Input(message.chars().take(300).collect())
}
