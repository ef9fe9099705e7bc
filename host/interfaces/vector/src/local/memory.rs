//! The vectors of one index in memory, as searches need them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::client::{Metadata, SparseValues, Vector};
use crate::score::{inverse_norm, sorted};

/// About this many values share a segment: small enough to copy when a writer meets a reader, large enough to scan fast.
const SEGMENT_VALUES: usize = 256 << 10;

/// One namespace. Rows are in segments behind `Arc`s: a search takes them and lets go of the lock, so it sees one state to its
/// end, and a writer copies only those segments that a search still holds.
pub(crate) struct Space {
    dimension: usize,
    rows_per_segment: usize,
    /// Row numbers by id, in the order that pages have.
    rows: BTreeMap<Arc<str>, usize>,
    segments: Vec<Arc<Segment>>,
    bytes: usize,
}

/// Some rows, their values one after the other.
#[derive(Clone, Default)]
pub(crate) struct Segment {
    values: Vec<f32>,
    rows: Vec<Row>,
}

/// What a row is besides its values.
#[derive(Clone)]
pub(crate) struct Row {
    pub(crate) id: Arc<str>,
    /// [`inverse_norm`] of the values.
    pub(crate) scale: f64,
    /// In the order of indices.
    pub(crate) sparse: Option<Arc<SparseValues>>,
    pub(crate) metadata: Option<Arc<Metadata>>,
}

impl Space {
    pub(crate) fn new(dimension: usize) -> Self {
        Self {
            dimension,
            rows_per_segment: (SEGMENT_VALUES / dimension.max(1)).clamp(16, 4096),
            rows: BTreeMap::new(),
            segments: Vec::new(),
            bytes: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// An estimate of the memory that this namespace takes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn segments(&self) -> Vec<Arc<Segment>> {
        self.segments.clone()
    }

    pub(crate) fn get(&self, id: &str) -> Option<Vector> {
        let row = *self.rows.get(id)?;
        let segment = self.segments.get(row / self.rows_per_segment)?;
        let (values, row) = segment.row(row % self.rows_per_segment, self.dimension)?;
        Some(row.to_vector(values))
    }

    pub(crate) fn has(&self, id: &str) -> bool {
        self.rows.contains_key(id)
    }

    /// Ids from `after` (or `prefix`) on that start with `prefix`, and whether there are more.
    pub(crate) fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> (Vec<String>, bool) {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut ids = self
            .rows
            .range::<str, _>((start, Bound::Unbounded))
            .map(|(id, _)| id)
            .take_while(|id| id.starts_with(prefix));
        let page = ids.by_ref().take(limit).map(|id| id.to_string()).collect();
        (page, ids.next().is_some())
    }

    pub(crate) fn put(&mut self, vector: Vector) {
        self.bytes += footprint(&vector);
        let Vector {
            id,
            values,
            sparse,
            metadata,
        } = vector;
        let row = Row {
            id: Arc::from(id),
            scale: inverse_norm(&values),
            sparse: sparse.map(sorted).map(Arc::new),
            metadata: metadata.map(Arc::new),
        };
        if let Some(old) = self.get(&row.id) {
            self.bytes -= footprint(&old);
            if let Some(number) = self.rows.get(&row.id).copied() {
                self.set(number, row, &values);
            }
            return;
        }
        let number = self.rows.len();
        self.rows.insert(Arc::clone(&row.id), number);
        let index = number / self.rows_per_segment;
        if index == self.segments.len() {
            self.segments.push(Arc::new(Segment::default()));
        }
        if let Some(segment) = self.segments.get_mut(index) {
            let segment = Arc::make_mut(segment);
            segment.values.extend_from_slice(&values);
            segment.rows.push(row);
        }
    }

    /// Removes a row; the last one takes its place, so that there are never holes.
    pub(crate) fn remove(&mut self, id: &str) {
        let Some(old) = self.get(id) else { return };
        let Some(number) = self.rows.remove(id) else {
            return;
        };
        self.bytes -= footprint(&old);
        let Some((moved, values)) = self.pop() else {
            return;
        };
        if *moved.id != *id {
            self.rows.insert(Arc::clone(&moved.id), number);
            self.set(number, moved, &values);
        }
    }

    fn pop(&mut self) -> Option<(Row, Vec<f32>)> {
        let segment = Arc::make_mut(self.segments.last_mut()?);
        let row = segment.rows.pop()?;
        let values = segment
            .values
            .split_off(segment.rows.len() * self.dimension);
        if segment.rows.is_empty() {
            self.segments.pop();
        }
        Some((row, values))
    }

    fn set(&mut self, number: usize, row: Row, values: &[f32]) {
        let Some(segment) = self.segments.get_mut(number / self.rows_per_segment) else {
            return;
        };
        let segment = Arc::make_mut(segment);
        let number = number % self.rows_per_segment;
        let start = number * self.dimension;
        if let (Some(place), Some(old)) = (
            segment.values.get_mut(start..start + self.dimension),
            segment.rows.get_mut(number),
        ) {
            place.copy_from_slice(values);
            *old = row;
        }
    }
}

impl Segment {
    /// Each row with its values.
    pub(crate) fn iter(&self, dimension: usize) -> impl Iterator<Item = (&[f32], &Row)> {
        self.values.chunks_exact(dimension).zip(&self.rows)
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn row(&self, number: usize, dimension: usize) -> Option<(&[f32], &Row)> {
        let start = number * dimension;
        Some((
            self.values.get(start..start + dimension)?,
            self.rows.get(number)?,
        ))
    }
}

impl Row {
    pub(crate) fn to_vector(&self, values: &[f32]) -> Vector {
        Vector {
            id: self.id.to_string(),
            values: values.to_vec(),
            sparse: self.sparse.as_deref().cloned(),
            metadata: self.metadata.as_deref().cloned(),
        }
    }
}

/// An estimate of the memory that a vector takes: it is what bounds an index, so it errs upwards.
pub(crate) fn footprint(vector: &Vector) -> usize {
    let metadata = vector.metadata.as_ref().map_or(0, |metadata| {
        128 + crate::limits::metadata_size(metadata) * 2 + metadata.len() * 128
    });
    256 + vector.id.len() * 2
        + vector.values.len() * 4
        + vector
            .sparse
            .as_ref()
            .map_or(0, |sparse| 64 + sparse.values.len() * 8)
        + metadata
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(id: usize, value: f32) -> Vector {
        Vector {
            id: format!("v{id}"),
            values: vec![value; 40_000],
            sparse: None,
            metadata: None,
        }
    }

    /// Every id is where the index says, through any order of writes, and bytes return to nothing.
    #[test]
    fn rows_stay_where_the_index_says() {
        let mut space = Space::new(40_000);
        let mut model = std::collections::BTreeMap::new();
        let mut state = 7u64;
        for step in 0..400 {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let id = (state >> 33) as usize % 60;
            if state >> 63 == 0 {
                space.put(vector(id, step as f32));
                model.insert(id, step as f32);
            } else {
                space.remove(&format!("v{id}"));
                model.remove(&id);
            }
            assert_eq!(space.len(), model.len());
            for (id, value) in &model {
                let found = space.get(&format!("v{id}")).unwrap();
                assert_eq!((found.id, found.values[0]), (format!("v{id}"), *value));
            }
        }
        for id in 0..60 {
            space.remove(&format!("v{id}"));
        }
        assert_eq!(
            (space.len(), space.bytes(), space.segments().len()),
            (0, 0, 0)
        );
    }

    #[test]
    fn a_reader_keeps_what_it_took() {
        let mut space = Space::new(40_000);
        space.put(vector(1, 1.0));
        let taken = space.segments();
        space.put(vector(1, 2.0));
        space.remove("v1");
        assert_eq!(taken[0].iter(40_000).next().unwrap().0[0], 1.0);
    }
}
