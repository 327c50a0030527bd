//! Measures a pass at each batch size before the first lease, and finds the row budget.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use muse_engine::{
    Conditioning, ConditioningInput, Row, RowConditioning, RowError, RowSettings, Sampling, StageError,
    StageModel,
};

use super::curve::{PassCurve, Point, warm_up_sizes};

/// Sizes beyond the best one that are measured again: larger ones bring no more rows a second, and the start should not wait
/// for them. More than one, because the next may be odd by its shape, or by another process.
const SIZES_BEYOND: usize = 2;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct WarmUp {
    /// Largest pass tried, in rows.
    pub max_rows: usize,
    /// Rounds over all sizes, after one that only fills buffers; a size's fastest pass counts.
    pub rounds: usize,
    /// No larger pass is tried once one took this long.
    pub max_pass: Duration,
}

/// Warm-up failed: the model cannot run.
#[derive(Debug, thiserror::Error)]
pub enum WarmUpError {
    /// The model failed.
    #[error("the model failed at warm-up with {rows} rows: {source}")]
    Model {
        /// In the pass.
        rows: usize,
        /// Why.
        source: StageError,
    },
    /// The bundle's own defaults do not make a row.
    #[error("the bundle's defaults do not make a row: {0}")]
    Row(#[from] RowError),
}

/// Runs passes of unguided rows conditioned on `input` and returns how long they took.
///
/// Size after size in rounds, and not all passes of a size in a row: a busy second of the machine then slows all sizes alike,
/// and does not make one of them look as if it were past the knee.
///
/// # Errors
/// When the model cannot run them.
pub fn warm_up<M: StageModel>(
    model: &mut M,
    input: &ConditioningInput,
    settings: WarmUp,
    clock: &dyn Fn() -> Instant,
) -> Result<PassCurve, WarmUpError> {
    let conditioning = model
        .condition(std::slice::from_ref(input))
        .map_err(|source| WarmUpError::Model { rows: 1, source })?;
    let Some(conditional) = conditioning.into_iter().next() else {
        return Ok(PassCurve::default());
    };
    let mut sizes = warm_up_sizes(settings.max_rows);
    // The first pass of a size fills buffers; it only tells which sizes take too long.
    for index in 0..sizes.len() {
        if pass(model, &conditional, sizes[index], 0, clock)? > settings.max_pass {
            sizes.truncate(index + 1);
            break;
        }
    }
    let mut points: Vec<Point> = Vec::with_capacity(sizes.len());
    for round in 1..=settings.rounds.max(1) {
        for (index, rows) in sizes.iter().copied().enumerate() {
            let time = pass(model, &conditional, rows, round as u64, clock)?;
            match points.get_mut(index) {
                Some(point) => point.time = point.time.min(time),
                None => points.push(Point { rows, time }),
            }
        }
        // One round may have met a busy second; two have not met it at the same sizes.
        if round > 1 {
            sizes.truncate(1 + best(&points) + SIZES_BEYOND);
        }
    }
    Ok(PassCurve::new(points))
}

/// The time of one pass over `rows` fresh rows.
fn pass<M: StageModel>(
    model: &mut M,
    conditional: &Arc<Conditioning>,
    rows: usize,
    seed: u64,
    clock: &dyn Fn() -> Instant,
) -> Result<Duration, WarmUpError> {
    let spec = model.spec().clone();
    let fresh = (0..rows).map(|index| {
        let settings = RowSettings {
            seed,
            image_index: index as u32,
            stage: spec.stage,
            // Without guidance a row costs 1, so any size can be made.
            sampling: Sampling {
                guidance: 0.0,
                ..spec.defaults.clone()
            },
        };
        let conditioning = RowConditioning {
            conditional: conditional.clone(),
            unconditional: None,
        };
        Row::text_to_image(&spec, settings, conditioning)
    });
    let mut fresh = fresh.collect::<Result<Vec<_>, _>>()?;
    let mut batch: Vec<&mut Row> = fresh.iter_mut().collect();
    let begun = clock();
    model
        .pass(&mut batch)
        .map_err(|source| WarmUpError::Model { rows, source })?;
    Ok(clock().saturating_duration_since(begun))
}

/// Index of the point with most rows a second; of equals the smallest.
fn best(points: &[Point]) -> usize {
    let mut best = 0;
    for (index, point) in points.iter().enumerate() {
        if point.rate() > points[best].rate() {
            best = index;
        }
    }
    best
}
