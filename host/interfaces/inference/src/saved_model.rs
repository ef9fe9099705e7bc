//! The parts of TensorFlow's `saved_model.proto` that the host reads; prost skips the rest. Field numbers are TensorFlow's.

use std::collections::HashMap;

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SavedModel {
    #[prost(message, repeated, tag = "2")]
    pub(crate) meta_graphs: Vec<MetaGraphDef>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MetaGraphDef {
    #[prost(message, optional, tag = "1")]
    pub(crate) meta_info_def: Option<MetaInfoDef>,
    #[prost(message, optional, tag = "2")]
    pub(crate) graph_def: Option<GraphDef>,
    #[prost(message, optional, tag = "3")]
    pub(crate) saver_def: Option<SaverDef>,
    #[prost(map = "string, message", tag = "4")]
    pub(crate) collection_def: HashMap<String, CollectionDef>,
    #[prost(map = "string, message", tag = "5")]
    pub(crate) signature_def: HashMap<String, SignatureDef>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) asset_file_def: Vec<AssetFileDef>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MetaInfoDef {
    #[prost(string, repeated, tag = "4")]
    pub(crate) tags: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SaverDef {
    #[prost(string, tag = "3")]
    pub(crate) restore_op_name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CollectionDef {
    #[prost(message, optional, tag = "1")]
    pub(crate) node_list: Option<NodeList>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeList {
    #[prost(string, repeated, tag = "1")]
    pub(crate) value: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AssetFileDef {
    #[prost(string, tag = "2")]
    pub(crate) filename: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SignatureDef {
    #[prost(map = "string, message", tag = "1")]
    pub(crate) inputs: HashMap<String, TensorInfo>,
    #[prost(map = "string, message", tag = "2")]
    pub(crate) outputs: HashMap<String, TensorInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TensorInfo {
    /// `node:index`; empty for sparse and composite tensors, which are not supported.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(int32, tag = "2")]
    pub(crate) dtype: i32,
    #[prost(message, optional, tag = "3")]
    pub(crate) tensor_shape: Option<TensorShape>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TensorShape {
    #[prost(message, repeated, tag = "2")]
    pub(crate) dim: Vec<Dim>,
    #[prost(bool, tag = "3")]
    pub(crate) unknown_rank: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Dim {
    #[prost(int64, tag = "1")]
    pub(crate) size: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct GraphDef {
    #[prost(message, repeated, tag = "1")]
    pub(crate) node: Vec<NodeDef>,
    #[prost(message, optional, tag = "2")]
    pub(crate) library: Option<FunctionDefLibrary>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct FunctionDefLibrary {
    #[prost(message, repeated, tag = "1")]
    pub(crate) function: Vec<FunctionDef>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct FunctionDef {
    #[prost(message, optional, tag = "1")]
    pub(crate) signature: Option<OpDef>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) node_def: Vec<NodeDef>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct OpDef {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeDef {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) op: String,
    #[prost(string, repeated, tag = "3")]
    pub(crate) input: Vec<String>,
    #[prost(map = "string, message", tag = "5")]
    pub(crate) attr: HashMap<String, AttrValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AttrValue {
    #[prost(message, optional, tag = "1")]
    pub(crate) list: Option<AttrList>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) s: Vec<u8>,
    #[prost(message, optional, tag = "10")]
    pub(crate) func: Option<NameAttrList>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AttrList {
    #[prost(message, repeated, tag = "9")]
    pub(crate) func: Vec<NameAttrList>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NameAttrList {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(map = "string, message", tag = "2")]
    pub(crate) attr: HashMap<String, AttrValue>,
}
