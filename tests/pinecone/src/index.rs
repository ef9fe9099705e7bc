//! An index as plainly as it can be written: a map for each namespace, f64 sums, a full sort.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::filter;

pub(crate) struct Index {
    pub(crate) dimension: usize,
    pub(crate) metric: String,
    pub(crate) cloud: String,
    pub(crate) region: String,
    pub(crate) spaces: BTreeMap<String, BTreeMap<String, Stored>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stored {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) values: Vec<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sparse_values: Option<Sparse>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<Map<String, Value>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Sparse {
    pub(crate) indices: Vec<u32>,
    pub(crate) values: Vec<f32>,
}

impl Index {
    pub(crate) fn new(dimension: usize, metric: &str) -> Self {
        Self {
            dimension,
            metric: metric.to_owned(),
            cloud: "aws".into(),
            region: "us-east-1".into(),
            spaces: BTreeMap::new(),
        }
    }

    /// Why a vector cannot be stored.
    pub(crate) fn check(&self, vector: &Stored) -> Result<(), String> {
        if !(1..=512).contains(&vector.id.len()) {
            return Err("Vector ID must have between 1 and 512 characters".into());
        }
        if !vector.id.is_ascii() || vector.id.contains('\0') {
            return Err(format!(
                "Vector ID must contain only ASCII characters, got: {}",
                vector.id
            ));
        }
        self.check_values(&vector.values)?;
        if vector.values.iter().all(|value| *value == 0.0) {
            return Err(format!(
                "Dense vectors must contain at least one non-zero value. Vector ID {} contains only zeros.",
                vector.id
            ));
        }
        if vector.sparse_values.is_some() && self.metric != "dotproduct" {
            return Err("Index configuration does not support sparse values".into());
        }
        vector.metadata.as_ref().map_or(Ok(()), check_metadata)
    }

    pub(crate) fn check_values(&self, values: &[f32]) -> Result<(), String> {
        if values.len() != self.dimension {
            return Err(format!(
                "Vector dimension {} does not match the dimension of the index {}",
                values.len(),
                self.dimension
            ));
        }
        Ok(())
    }

    /// Scores of the vectors for which the filter holds, nearest first.
    pub(crate) fn query(
        &self,
        space: &str,
        dense: &[f32],
        sparse: Option<&Sparse>,
        wanted: Option<&Value>,
    ) -> Result<Vec<(f64, &Stored)>, String> {
        let mut scored = Vec::new();
        for stored in self
            .spaces
            .get(space)
            .into_iter()
            .flat_map(BTreeMap::values)
        {
            if self.matches(stored, wanted)? {
                scored.push((self.score(dense, sparse, stored), stored));
            }
        }
        scored.sort_by(|(a, _), (b, _)| match self.metric.as_str() {
            "euclidean" => a.total_cmp(b),
            _ => b.total_cmp(a),
        });
        Ok(scored)
    }

    pub(crate) fn matches(&self, stored: &Stored, wanted: Option<&Value>) -> Result<bool, String> {
        match wanted {
            None => Ok(true),
            Some(wanted) => filter::holds(wanted, stored.metadata.as_ref().unwrap_or(&Map::new())),
        }
    }

    fn score(&self, dense: &[f32], sparse: Option<&Sparse>, stored: &Stored) -> f64 {
        let pairs = || {
            dense
                .iter()
                .zip(&stored.values)
                .map(|(a, b)| (f64::from(*a), f64::from(*b)))
        };
        let dot: f64 = pairs().map(|(a, b)| a * b).sum();
        match self.metric.as_str() {
            "euclidean" => pairs().map(|(a, b)| (a - b).powi(2)).sum(),
            "cosine" => {
                let a: f64 = pairs().map(|(a, _)| a * a).sum();
                let b: f64 = pairs().map(|(_, b)| b * b).sum();
                if a * b == 0.0 {
                    0.0
                } else {
                    dot / (a.sqrt() * b.sqrt())
                }
            }
            _ => {
                dot + sparse
                    .zip(stored.sparse_values.as_ref())
                    .map_or(0.0, |(a, b)| overlap(a, b))
            }
        }
    }
}

fn overlap(a: &Sparse, b: &Sparse) -> f64 {
    let b: BTreeMap<u32, f32> = b
        .indices
        .iter()
        .copied()
        .zip(b.values.iter().copied())
        .collect();
    a.indices
        .iter()
        .zip(&a.values)
        .filter_map(|(index, value)| Some(f64::from(*value) * f64::from(*b.get(index)?)))
        .sum()
}

pub(crate) fn check_metadata(metadata: &Map<String, Value>) -> Result<(), String> {
    for (field, value) in metadata {
        let legal = match value {
            Value::Array(list) => list.iter().all(Value::is_string),
            other => other.is_string() || other.is_number() || other.is_boolean(),
        };
        if !legal {
            return Err(format!(
                "Metadata value must be a string, number, boolean or list of strings, got '{value}' for field '{field}'"
            ));
        }
    }
    if Value::Object(metadata.clone()).to_string().len() > 40_960 {
        return Err("Metadata size exceeds the limit of 40960 bytes per vector".into());
    }
    Ok(())
}
