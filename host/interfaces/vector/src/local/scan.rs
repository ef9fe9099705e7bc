//! Searching rows: every one is looked at, so results are exact and any filter is.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Instant;

use super::memory::{Row, Segment};
use crate::client::{Match, VectorError};
use crate::filter::Filter;
use crate::limits::ResultSize;
use crate::score::Scorer;

/// A search over rows that were taken from a namespace.
pub(crate) struct Scan {
    pub(crate) dimension: usize,
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) scorer: Scorer,
    pub(crate) top_k: usize,
    pub(crate) filter: Option<Filter>,
    pub(crate) include_values: bool,
    pub(crate) include_metadata: bool,
    pub(crate) deadline: Instant,
}

/// A row that may be among the nearest. The greatest of a heap is the one to give up first.
struct Candidate<'a> {
    rank: f32,
    score: f32,
    values: &'a [f32],
    row: &'a Row,
}

impl Scan {
    /// How much work it is, in about the time that one value takes.
    pub(crate) fn cost(&self) -> usize {
        let per_row = self.dimension + self.filter.as_ref().map_or(0, Filter::operators) * 32;
        self.segments
            .iter()
            .map(|segment| segment.len() * per_row)
            .sum()
    }

    pub(crate) fn run(&self) -> Result<Vec<Match>, VectorError> {
        let mut nearest: BinaryHeap<Candidate<'_>> = BinaryHeap::new();
        for segment in &self.segments {
            if Instant::now() >= self.deadline {
                return Err(VectorError::DeadlineExceeded);
            }
            for (values, row) in segment.iter(self.dimension) {
                let score = self.scorer.score(values, row.scale, row.sparse.as_deref());
                let candidate = Candidate {
                    rank: self.scorer.rank(score),
                    score,
                    values,
                    row,
                };
                let full = nearest.len() >= self.top_k;
                if full && nearest.peek().is_none_or(|worst| candidate >= *worst) {
                    continue;
                }
                // After the score, since most rows are not near enough to ask.
                if self
                    .filter
                    .as_ref()
                    .is_some_and(|filter| !filter.holds(row.metadata.as_deref()))
                {
                    continue;
                }
                if full {
                    nearest.pop();
                }
                nearest.push(candidate);
            }
        }
        let mut size = ResultSize::default();
        nearest
            .into_sorted_vec()
            .into_iter()
            .map(|candidate| {
                let found = self.found(&candidate);
                size.add_match(&found)?;
                Ok(found)
            })
            .collect()
    }

    fn found(&self, candidate: &Candidate<'_>) -> Match {
        let row = candidate.row;
        Match {
            id: row.id.to_string(),
            score: candidate.score,
            values: self.include_values.then(|| candidate.values.to_vec()),
            sparse: self
                .include_values
                .then(|| row.sparse.as_deref().cloned())
                .flatten(),
            metadata: self
                .include_metadata
                .then(|| row.metadata.as_deref().cloned())
                .flatten(),
        }
    }
}

/// The ids for which a filter holds.
pub(crate) fn matching(
    segments: &[Arc<Segment>],
    dimension: usize,
    filter: &Filter,
) -> Vec<String> {
    segments
        .iter()
        .flat_map(|segment| segment.iter(dimension))
        .filter(|(_, row)| filter.holds(row.metadata.as_deref()))
        .map(|(_, row)| row.id.to_string())
        .collect()
}

/// Nearer is less; of equally near ones the smaller id is, so that results never depend on the order of writes.
impl Ord for Candidate<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        other
            .rank
            .total_cmp(&self.rank)
            .then_with(|| self.row.id.cmp(&other.row.id))
    }
}

impl PartialOrd for Candidate<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate<'_> {}
