//! How near two vectors are. Sums are in f32 and in sixteen lanes, which compilers turn into vector instructions.

use crate::client::{Metric, SparseValues};

/// Scores rows against one query.
pub(crate) struct Scorer {
    metric: Metric,
    dense: Vec<f32>,
    sparse: Option<SparseValues>,
}

impl Scorer {
    pub(crate) fn new(metric: Metric, mut dense: Vec<f32>, sparse: Option<SparseValues>) -> Self {
        if metric == Metric::Cosine {
            let scale = inverse_norm(&dense);
            for value in &mut dense {
                *value = narrow(f64::from(*value) * scale);
            }
        }
        Self {
            metric,
            dense,
            sparse: sparse.map(sorted),
        }
    }

    /// The score of a row; `scale` is the row's [`inverse_norm`], `sparse` is [`sorted`].
    pub(crate) fn score(&self, row: &[f32], scale: f64, sparse: Option<&SparseValues>) -> f32 {
        let dense = match self.metric {
            Metric::Euclidean => finite_or(squared_distance(&self.dense, row), || {
                exact(&self.dense, row, |a, b| (a - b) * (a - b))
            }),
            Metric::Cosine | Metric::Dotproduct => {
                let product = finite_or(dot(&self.dense, row), || {
                    exact(&self.dense, row, |a, b| a * b)
                });
                match self.metric {
                    Metric::Cosine => product * scale,
                    _ => product,
                }
            }
        };
        match (&self.sparse, sparse) {
            (Some(query), Some(row)) if self.metric == Metric::Dotproduct => {
                narrow(dense + sparse_dot(query, row))
            }
            _ => narrow(dense),
        }
    }

    /// The order of scores: greater is nearer.
    pub(crate) fn rank(&self, score: f32) -> f32 {
        match self.metric {
            Metric::Euclidean => -score,
            Metric::Cosine | Metric::Dotproduct => score,
        }
    }
}

/// One over a vector's length, in f64 since squares of f32 overflow f32; zero for a vector of zeros.
pub(crate) fn inverse_norm(values: &[f32]) -> f64 {
    let square = exact(values, values, |a, b| a * b);
    if square > 0.0 {
        square.sqrt().recip()
    } else {
        0.0
    }
}

/// Sparse values in the order of their indices, as [`Scorer::score`] needs them.
pub(crate) fn sorted(sparse: SparseValues) -> SparseValues {
    let mut pairs: Vec<(u32, f32)> = sparse.indices.into_iter().zip(sparse.values).collect();
    pairs.sort_by_key(|(index, _)| *index);
    let (indices, values) = pairs.into_iter().unzip();
    SparseValues { indices, values }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_pairs(a, b, |a, b| a * b)
}

fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    sum_pairs(a, b, |a, b| (a - b) * (a - b))
}

#[inline(always)]
fn sum_pairs(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let (a_lanes, a_rest) = a.as_chunks::<16>();
    let (b_lanes, b_rest) = b.as_chunks::<16>();
    let mut sums = [0.0f32; 16];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += term(*a, *b);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| term(*a, *b)).sum();
    sums.iter().sum::<f32>() + rest
}

fn exact(a: &[f32], b: &[f32], term: impl Fn(f64, f64) -> f64) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| term(f64::from(*a), f64::from(*b)))
        .sum()
}

/// Values near the edge of f32 overflow its sums: only then is the slow sum worth it.
fn finite_or(fast: f32, exact: impl FnOnce() -> f64) -> f64 {
    if fast.is_finite() {
        f64::from(fast)
    } else {
        exact()
    }
}

fn sparse_dot(a: &SparseValues, b: &SparseValues) -> f64 {
    let mut sum = 0.0;
    let mut others = b.indices.iter().zip(&b.values).peekable();
    for (index, value) in a.indices.iter().zip(&a.values) {
        while others.next_if(|(other, _)| *other < index).is_some() {}
        if let Some((_, other)) = others.next_if(|(other, _)| *other == index) {
            sum += f64::from(*value) * f64::from(*other);
        }
    }
    sum
}

/// The nearest finite f32: a score is a number that every transport can carry.
#[allow(
    clippy::cast_possible_truncation,
    reason = "scores are f32, and the clamp keeps them finite"
)]
fn narrow(value: f64) -> f32 {
    value.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(metric: Metric, query: &[f32], row: &[f32]) -> f32 {
        Scorer::new(metric, query.to_vec(), None).score(row, inverse_norm(row), None)
    }

    #[test]
    fn fast_sums_agree_with_exact_ones() {
        for length in [1, 15, 16, 17, 64, 384, 1000] {
            let a: Vec<f32> = (0..length)
                .map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0)
                .collect();
            let b: Vec<f32> = (0..length)
                .map(|i| ((i * 53 % 97) as f32 - 48.0) / 31.0)
                .collect();
            let wanted = exact(&a, &b, |a, b| a * b);
            assert!((f64::from(dot(&a, &b)) - wanted).abs() < 1e-3, "{length}");
            let wanted = exact(&a, &b, |a, b| (a - b) * (a - b));
            assert!(
                (f64::from(squared_distance(&a, &b)) - wanted).abs() < 1e-2,
                "{length}"
            );
        }
    }

    #[test]
    fn metrics() {
        assert!((score(Metric::Cosine, &[2.0, 0.0], &[5.0, 0.0]) - 1.0).abs() < 1e-6);
        assert!((score(Metric::Cosine, &[1.0, 0.0], &[1.0, 1.0]) - 0.5f32.sqrt()).abs() < 1e-6);
        assert_eq!(score(Metric::Euclidean, &[1.0, 2.0], &[4.0, 6.0]), 25.0);
        assert_eq!(score(Metric::Dotproduct, &[1.0, 2.0], &[4.0, 6.0]), 16.0);
        assert_eq!(score(Metric::Cosine, &[0.0, 0.0], &[4.0, 6.0]), 0.0);
    }

    #[test]
    fn extreme_values_keep_finite_and_right() {
        let (huge, tiny) = (3e38f32, 1e-40f32);
        for value in [huge, tiny] {
            let same = score(Metric::Cosine, &[value, value], &[value, value]);
            assert!((same - 1.0).abs() < 1e-3, "{value}: {same}");
            let opposite = score(Metric::Cosine, &[value, value], &[-value, -value]);
            assert!((opposite + 1.0).abs() < 1e-3, "{value}: {opposite}");
        }
        assert_eq!(
            score(Metric::Dotproduct, &[huge, huge], &[huge, -huge]),
            0.0
        );
        assert_eq!(score(Metric::Dotproduct, &[huge], &[huge]), f32::MAX);
        assert_eq!(score(Metric::Euclidean, &[huge], &[-huge]), f32::MAX);
    }

    #[test]
    fn sparse_values_add_to_the_dot_product() {
        let sparse = |pairs: &[(u32, f32)]| {
            let (indices, values) = pairs.iter().copied().unzip();
            SparseValues { indices, values }
        };
        let scorer = Scorer::new(
            Metric::Dotproduct,
            vec![1.0],
            Some(sparse(&[(9, 2.0), (3, 10.0)])),
        );
        let row = sorted(sparse(&[(4, 7.0), (3, 0.5), (9, 1.0)]));
        assert_eq!(scorer.score(&[2.0], 0.0, Some(&row)), 2.0 + 5.0 + 2.0);
        assert_eq!(scorer.score(&[2.0], 0.0, None), 2.0);
    }
}
