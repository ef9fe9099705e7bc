//! The ops that no served model needs, and whether a model reaches one of them.
//!
//! A SavedModel is a program, and only operators put one on disk; this keeps mistakes and borrowed models from touching the
//! host's files.

use std::collections::{HashMap, HashSet};

use crate::LoadError;
use crate::saved_model::{AttrValue, MetaGraphDef, NodeDef};

/// Ops that touch files, sockets or Python. No signature may reach one, and neither may what runs at load, but for the
/// exceptions of [`RESTORE`] and [`TABLE`].
const REFUSED: &[&str] = &[
    // files
    "FileSystemSetConfiguration",
    "FixedLengthRecordReader",
    "FixedLengthRecordReaderV2",
    "GenerateVocabRemapping",
    "InitializeTableFromTextFile",
    TABLE,
    "LMDBReader",
    "LoadAndRemapMatrix",
    "MatchingFiles",
    "MergeV2Checkpoints",
    "ReadFile",
    RESTORE,
    "Restore",
    "RestoreSlice",
    "Save",
    "SaveSlices",
    "SaveV2",
    "TFRecordReader",
    "TFRecordReaderV2",
    "TextLineReader",
    "TextLineReaderV2",
    "WholeFileReader",
    "WholeFileReaderV2",
    "WriteFile",
    // datasets on files and services
    "CSVDataset",
    "CSVDatasetV2",
    "CacheDataset",
    "CacheDatasetV2",
    "DataServiceDataset",
    "DataServiceDatasetV2",
    "DataServiceDatasetV3",
    "DataServiceDatasetV4",
    "DatasetToTFRecord",
    "DistributedSave",
    "ExperimentalCSVDataset",
    "ExperimentalDatasetToTFRecord",
    "ExperimentalLMDBDataset",
    "ExperimentalMatchingFilesDataset",
    "ExperimentalSqlDataset",
    "FixedLengthRecordDataset",
    "FixedLengthRecordDatasetV2",
    "LMDBDataset",
    "ListSnapshotChunksDataset",
    "LoadDataset",
    "MatchingFilesDataset",
    "RegisterDataset",
    "RegisterDatasetV2",
    "SaveDataset",
    "SaveDatasetV2",
    "SnapshotChunkDataset",
    "SnapshotDataset",
    "SnapshotDatasetReader",
    "SnapshotDatasetV2",
    "SnapshotNestedDatasetReader",
    "SqlDataset",
    "TFRecordDataset",
    "TFRecordDatasetV2",
    "TextLineDataset",
    // summaries and debugging write files
    "CreateSummaryDbWriter",
    "CreateSummaryFileWriter",
    "DebugIdentity",
    "DebugIdentityV2",
    "DebugIdentityV3",
    "DebugNanCount",
    "DebugNumericSummary",
    "DebugNumericSummaryV2",
    "ImportEvent",
    // Python
    "EagerPyFunc",
    "PyFunc",
    "PyFuncStateless",
    // other processes
    "RpcCall",
    "RpcClient",
    "RpcServer",
];

/// Restores the variables when a model is loaded.
const RESTORE: &str = "RestoreV2";

/// Fills a lookup table when a model is loaded; the file must be among the model's assets.
const TABLE: &str = "InitializeTableFromTextFileV2";

/// Ops that are fine unless this attribute names a file.
const REFUSED_WITH_FILE: &[(&str, &str)] = &[
    ("PrintV2", "output_stream"),
    ("DecodeProtoV2", "descriptor_source"),
    ("EncodeProto", "descriptor_source"),
];

/// Signatures that TensorFlow's loader runs by itself.
const AT_LOAD: [&str; 2] = ["__saved_model_init_op", "__saved_model_train_op"];

/// Collections in which version 1 models name the same.
const AT_LOAD_V1: [&str; 2] = ["saved_model_main_op", "legacy_init_op"];

/// Refuses a graph whose signatures reach an op that touches files, processes or Python, or which runs one when it is loaded.
///
/// # Errors
/// [`LoadError`], which names the op and what reaches it.
pub(crate) fn refuse_ops(graph: &MetaGraphDef) -> Result<(), LoadError> {
    let program = Program::new(graph);
    for (name, signature) in &graph.signature_def {
        let at_load = AT_LOAD.contains(&name.as_str());
        let roots = signature
            .outputs
            .values()
            .map(|output| output.name.as_str());
        let by = if at_load {
            "the model's initialiser".into()
        } else {
            format!("signature '{name}'")
        };
        let table = at_load && bundled(graph);
        program.refuse(roots, &by, |op| table && op == TABLE)?;
    }
    for collection in AT_LOAD_V1 {
        let nodes = graph
            .collection_def
            .get(collection)
            .and_then(|found| found.node_list.as_ref());
        let roots = nodes
            .iter()
            .flat_map(|nodes| nodes.value.iter().map(String::as_str));
        let table = bundled(graph);
        program.refuse(roots, "the model's initialiser", |op| table && op == TABLE)?;
    }
    let restore = graph
        .saver_def
        .iter()
        .map(|saver| saver.restore_op_name.as_str());
    program.refuse(restore, "restoring the model", |op| op == RESTORE)
}

/// Whether the model brings files of its own, all of them within its directory.
fn bundled(graph: &MetaGraphDef) -> bool {
    !graph.asset_file_def.is_empty()
        && graph.asset_file_def.iter().all(|asset| {
            !asset.filename.starts_with('/') && asset.filename.split('/').all(|part| part != "..")
        })
}

/// A graph and its functions, to be walked.
struct Program<'a> {
    nodes: HashMap<&'a str, &'a NodeDef>,
    functions: HashMap<&'a str, &'a [NodeDef]>,
}

impl<'a> Program<'a> {
    fn new(graph: &'a MetaGraphDef) -> Self {
        let graph = graph.graph_def.as_ref();
        let nodes = graph.iter().flat_map(|graph| &graph.node);
        let functions = (graph.iter())
            .flat_map(|graph| &graph.library)
            .flat_map(|library| &library.function);
        Self {
            nodes: nodes.map(|node| (node.name.as_str(), node)).collect(),
            functions: functions
                .filter_map(|function| {
                    let signature = function.signature.as_ref()?;
                    Some((signature.name.as_str(), function.node_def.as_slice()))
                })
                .collect(),
        }
    }

    /// Walks from these nodes of the graph through all that they depend on and all functions that are called.
    fn refuse(
        &self,
        roots: impl IntoIterator<Item = &'a str>,
        by: &str,
        excepted: impl Fn(&str) -> bool,
    ) -> Result<(), LoadError> {
        let mut waiting: Vec<&NodeDef> = Vec::new();
        let mut seen_nodes = HashSet::new();
        let mut seen_functions = HashSet::new();
        let mut wanted: Vec<&str> = roots.into_iter().collect();
        loop {
            while let Some(name) = wanted.pop() {
                let name = name.trim_start_matches('^');
                let name = name.split_once(':').map_or(name, |(node, _)| node);
                if seen_nodes.insert(name) {
                    waiting.extend(self.nodes.get(name));
                }
            }
            let Some(node) = waiting.pop() else {
                return Ok(());
            };
            let op = node.op.as_str();
            if refused(node) && !excepted(op) {
                return Err(LoadError(format!(
                    "the op {op} is reached by {by}: models may not use files, processes or Python"
                )));
            }
            // Inputs within a function name its own nodes, all of which are looked at anyway.
            if self
                .nodes
                .get(node.name.as_str())
                .is_some_and(|own| std::ptr::eq(*own, node))
            {
                wanted.extend(node.input.iter().map(String::as_str));
            }
            let mut called = vec![op];
            node.attr
                .values()
                .for_each(|attr| functions_of(attr, &mut called));
            for name in called {
                if let Some(body) = self.functions.get(name)
                    && seen_functions.insert(name)
                {
                    waiting.extend(body.iter());
                }
            }
        }
    }
}

fn refused(node: &NodeDef) -> bool {
    let names_file = |attribute: &str| {
        let value = node
            .attr
            .get(attribute)
            .map_or(&[][..], |attr| attr.s.as_slice());
        !matches!(
            value,
            b"" | b"local://"
                | b"stdout"
                | b"stderr"
                | b"log(info)"
                | b"log(warning)"
                | b"log(error)"
        )
    };
    REFUSED.contains(&node.op.as_str())
        || REFUSED_WITH_FILE
            .iter()
            .any(|(op, attribute)| node.op == *op && names_file(attribute))
}

/// Names of all functions within an attribute. Its depth is bounded: prost has decoded it.
fn functions_of<'a>(attr: &'a AttrValue, names: &mut Vec<&'a str>) {
    let listed = attr.list.iter().flat_map(|list| &list.func);
    for function in attr.func.iter().chain(listed) {
        names.push(&function.name);
        function
            .attr
            .values()
            .for_each(|attr| functions_of(attr, names));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saved_model::{
        AssetFileDef, AttrList, FunctionDef, FunctionDefLibrary, GraphDef, NameAttrList, OpDef,
        SaverDef, SignatureDef, TensorInfo,
    };

    fn node(name: &str, op: &str, inputs: &[&str]) -> NodeDef {
        NodeDef {
            name: name.into(),
            op: op.into(),
            input: inputs.iter().map(|input| (*input).into()).collect(),
            attr: HashMap::new(),
        }
    }

    fn calls(name: &str, function: &str) -> NodeDef {
        let function = NameAttrList {
            name: function.into(),
            attr: HashMap::new(),
        };
        let attr = AttrValue {
            list: Some(AttrList {
                func: vec![function],
            }),
            ..AttrValue::default()
        };
        NodeDef {
            attr: HashMap::from([("branches".into(), attr)]),
            ..node(name, "StatelessCase", &[])
        }
    }

    fn function(name: &str, nodes: Vec<NodeDef>) -> FunctionDef {
        FunctionDef {
            signature: Some(OpDef { name: name.into() }),
            node_def: nodes,
        }
    }

    fn model(
        nodes: Vec<NodeDef>,
        functions: Vec<FunctionDef>,
        signatures: &[(&str, &str)],
    ) -> MetaGraphDef {
        let signature = |output: &str| SignatureDef {
            inputs: HashMap::new(),
            outputs: HashMap::from([(
                "y".into(),
                TensorInfo {
                    name: format!("{output}:0"),
                    ..TensorInfo::default()
                },
            )]),
        };
        MetaGraphDef {
            graph_def: Some(GraphDef {
                node: nodes,
                library: Some(FunctionDefLibrary {
                    function: functions,
                }),
            }),
            signature_def: signatures
                .iter()
                .map(|(name, output)| ((*name).into(), signature(output)))
                .collect(),
            ..MetaGraphDef::default()
        }
    }

    fn checked(model: MetaGraphDef) -> Result<(), String> {
        refuse_ops(&model).map_err(|error| error.0)
    }

    #[test]
    fn a_refused_op_is_found_wherever_a_signature_reaches_it() {
        let reached = [
            model(
                vec![node("y", "ReadFile", &[])],
                vec![],
                &[("serving_default", "y")],
            ),
            model(
                vec![
                    node("y", "Identity", &["a"]),
                    node("a", "Identity", &["^b"]),
                    node("b", "WriteFile", &[]),
                ],
                vec![],
                &[("other", "y")],
            ),
            model(
                vec![calls("y", "f")],
                vec![
                    function("f", vec![node("g", "g", &[])]),
                    function("g", vec![node("p", "EagerPyFunc", &[])]),
                ],
                &[("serving_default", "y")],
            ),
            model(
                vec![node("y", "SaveV2", &[])],
                vec![],
                &[("serving_default", "y")],
            ),
        ];
        for model in reached {
            let message = checked(model).unwrap_err();
            assert!(message.contains("is reached by signature"), "{message}");
        }
    }

    #[test]
    fn a_refused_op_that_nothing_reaches_is_nobodys_business() {
        checked(model(
            vec![node("y", "Identity", &[]), node("save", "SaveV2", &["y"])],
            vec![function("unused", vec![node("w", "WriteFile", &[])])],
            &[("serving_default", "y")],
        ))
        .unwrap();
    }

    #[test]
    fn loops_in_graphs_and_functions_end() {
        checked(model(
            vec![node("y", "f", &["z"]), node("z", "Identity", &["y"])],
            vec![function("f", vec![node("again", "f", &[])])],
            &[("serving_default", "y")],
        ))
        .unwrap();
    }

    #[test]
    fn what_runs_at_load_may_restore_and_fill_tables_from_assets_only() {
        let initialised = |assets: &[&str]| MetaGraphDef {
            asset_file_def: assets
                .iter()
                .map(|name| AssetFileDef {
                    filename: (*name).into(),
                })
                .collect(),
            ..model(
                vec![node("init", TABLE, &[])],
                vec![],
                &[("__saved_model_init_op", "init")],
            )
        };
        checked(initialised(&["words.txt"])).unwrap();
        for assets in [
            &[][..],
            &["../words.txt"],
            &["/etc/passwd"],
            &["words.txt", "a/../b"],
        ] {
            assert!(checked(initialised(assets)).unwrap_err().contains(TABLE));
        }
        let restored = |op: &str| MetaGraphDef {
            saver_def: Some(SaverDef {
                restore_op_name: "restore".into(),
            }),
            ..model(vec![node("restore", op, &[])], vec![], &[])
        };
        checked(restored(RESTORE)).unwrap();
        assert!(
            checked(restored("WriteFile"))
                .unwrap_err()
                .contains("restoring the model")
        );
    }

    #[test]
    fn printing_is_fine_and_printing_to_files_is_not() {
        let printing = |stream: &str| {
            let attr = AttrValue {
                s: stream.into(),
                ..AttrValue::default()
            };
            let print = NodeDef {
                attr: HashMap::from([("output_stream".into(), attr)]),
                ..node("y", "PrintV2", &[])
            };
            model(vec![print], vec![], &[("serving_default", "y")])
        };
        checked(printing("stderr")).unwrap();
        assert!(checked(printing("file:///tmp/x")).is_err());
    }
}
