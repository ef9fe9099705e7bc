//! Searching rows: every one is looked at, so results are exact and any filter is. That is done by turns, and ends at the deadline.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Instant;

use super::lane::Work;
use super::memory::{Row, Segment};
use crate::client::{Match, VectorError};
use crate::filter::Filter;
use crate::limits::ResultSize;
use crate::score::Scorer;

/// A search over rows that were taken from a namespace.
pub(crate) struct Scan {
    pub(crate) rows: Rows,
    pub(crate) scorer: Scorer,
    pub(crate) top_k: usize,
    pub(crate) filter: Option<Filter>,
    pub(crate) include_values: bool,
    pub(crate) include_metadata: bool,
    /// The nearest ones among those that were looked at.
    pub(crate) nearest: BinaryHeap<Candidate>,
}

/// Looks for the ids for which a filter holds.
pub(crate) struct Matching {
    pub(crate) rows: Rows,
    pub(crate) filter: Filter,
    pub(crate) ids: Vec<String>,
}

/// Rows that were taken, and how many of them were looked at.
pub(crate) struct Rows {
    dimension: usize,
    segments: Vec<Arc<Segment>>,
    deadline: Instant,
    segment: usize,
    row: usize,
}

/// A row that may be among the nearest. The greatest of a heap is the one to give up first.
pub(crate) struct Candidate {
    rank: f32,
    score: f32,
    id: Arc<str>,
    segment: usize,
    row: usize,
}

/// Why a look at rows pauses.
enum Pause {
    Turn,
    Deadline,
}

/// About as much work as is done between two looks at the clock: some ten microseconds.
const STRIDE: usize = 16 << 10;

impl Rows {
    pub(crate) fn new(dimension: usize, segments: Vec<Arc<Segment>>, deadline: Instant) -> Self {
        Self {
            dimension,
            segments,
            deadline,
            segment: 0,
            row: 0,
        }
    }

    fn count(&self) -> usize {
        self.segments.iter().map(|segment| segment.len()).sum()
    }

    /// Looks at those that are left, until that time.
    fn look(
        &mut self,
        until: Instant,
        filtered: bool,
        mut each: impl FnMut((usize, usize), &[f32], &Row),
    ) -> Result<(), Pause> {
        // What a filter costs depends on the row, too.
        let stride = match filtered {
            true => 1,
            false => STRIDE.div_ceil(self.dimension.max(1)),
        };
        let mut left = 0;
        while let Some(segment) = self.segments.get(self.segment) {
            for (values, row) in segment.iter(self.dimension).skip(self.row) {
                if left == 0 {
                    let now = Instant::now();
                    if now >= self.deadline {
                        return Err(Pause::Deadline);
                    }
                    if now >= until {
                        return Err(Pause::Turn);
                    }
                    left = stride;
                }
                left -= 1;
                each((self.segment, self.row), values, row);
                self.row += 1;
            }
            self.segment += 1;
            self.row = 0;
        }
        Ok(())
    }

    fn at(&self, segment: usize, row: usize) -> Option<(&[f32], &Row)> {
        self.segments.get(segment)?.row(row, self.dimension)
    }
}

impl Scan {
    /// How much work it is, in about the time that one value takes. `bytes` is what the rows take.
    pub(crate) fn cost(&self, bytes: usize) -> usize {
        let operators = self.filter.as_ref().map_or(0, Filter::operators);
        let per_row = self.rows.dimension + operators * 32;
        let of_metadata = operators.saturating_mul(bytes / 16);
        (self.rows.count() * per_row).saturating_add(of_metadata)
    }

    fn finish(&mut self) -> Result<Vec<Match>, VectorError> {
        let mut size = ResultSize::default();
        std::mem::take(&mut self.nearest)
            .into_sorted_vec()
            .iter()
            .filter_map(|candidate| self.found(candidate))
            .map(|found| {
                size.add_match(&found)?;
                Ok(found)
            })
            .collect()
    }

    fn found(&self, candidate: &Candidate) -> Option<Match> {
        let (values, row) = self.rows.at(candidate.segment, candidate.row)?;
        Some(Match {
            id: row.id.to_string(),
            score: candidate.score,
            values: self.include_values.then(|| values.to_vec()),
            sparse: self
                .include_values
                .then(|| row.sparse.as_deref().cloned())
                .flatten(),
            metadata: self
                .include_metadata
                .then(|| row.metadata.as_deref().cloned())
                .flatten(),
        })
    }
}

impl Work for Scan {
    type Output = Result<Vec<Match>, VectorError>;

    fn go_on(&mut self, until: Instant) -> Option<Self::Output> {
        let Self {
            rows,
            scorer,
            top_k,
            filter,
            nearest,
            ..
        } = self;
        let looked = rows.look(until, filter.is_some(), |(segment, number), values, row| {
            let score = scorer.score(values, row.scale, row.sparse.as_deref());
            let rank = scorer.rank(score);
            let full = nearest.len() >= *top_k;
            if full
                && nearest
                    .peek()
                    .is_none_or(|worst| worst.against(rank, &row.id).is_le())
            {
                return;
            }
            // After the score, since most rows are not near enough to ask.
            if filter
                .as_ref()
                .is_some_and(|filter| !filter.holds(row.metadata.as_deref()))
            {
                return;
            }
            if full {
                nearest.pop();
            }
            nearest.push(Candidate {
                rank,
                score,
                id: row.id.clone(),
                segment,
                row: number,
            });
        });
        match looked {
            Ok(()) => Some(self.finish()),
            Err(Pause::Turn) => None,
            Err(Pause::Deadline) => Some(Err(VectorError::DeadlineExceeded)),
        }
    }
}

impl Work for Matching {
    type Output = Result<Vec<String>, VectorError>;

    fn go_on(&mut self, until: Instant) -> Option<Self::Output> {
        let Self { rows, filter, ids } = self;
        let looked = rows.look(until, true, |_, _, row| {
            if filter.holds(row.metadata.as_deref()) {
                ids.push(row.id.to_string());
            }
        });
        match looked {
            Ok(()) => Some(Ok(std::mem::take(ids))),
            Err(Pause::Turn) => None,
            Err(Pause::Deadline) => Some(Err(VectorError::DeadlineExceeded)),
        }
    }
}

impl Candidate {
    /// How this one compares with a row of that rank and id: nearer is less.
    fn against(&self, rank: f32, id: &str) -> Ordering {
        rank.total_cmp(&self.rank).then_with(|| (*self.id).cmp(id))
    }
}

/// Nearer is less; of equally near ones the smaller id is, so that results never depend on the order of writes.
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.against(other.rank, &other.id)
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}
