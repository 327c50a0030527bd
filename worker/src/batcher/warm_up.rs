//! Measures a pass at each batch size before the first lease, and finds the row budget.

use std::time::{Duration, Instant};

use muse_engine::{
    ConditioningInput, Row, RowConditioning, RowError, RowSettings, Sampling, StageError, StageModel,
};

use super::curve::{PassCurve, Point, warm_up_sizes};

/// Sizes in a row that bring no more rows a second, after which larger ones are not tried: the start should not wait for what
/// the device cannot use. One or two may be odd by their shape, or by another process.
const FLAT_SIZES: u32 = 3;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct WarmUp {
    /// Largest pass tried, in rows.
    pub max_rows: usize,
    /// Passes at each size; the fastest counts.
    pub passes: usize,
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
/// # Errors
/// When the model cannot run them.
pub fn warm_up<M: StageModel>(
    model: &mut M,
    input: &ConditioningInput,
    settings: WarmUp,
    clock: &dyn Fn() -> Instant,
) -> Result<PassCurve, WarmUpError> {
    let failed = |rows: usize| move |source| WarmUpError::Model { rows, source };
    let conditioning = model.condition(std::slice::from_ref(input)).map_err(failed(1))?;
    let Some(conditional) = conditioning.into_iter().next() else {
        return Ok(PassCurve::default());
    };
    let spec = model.spec().clone();
    let mut points = Vec::new();
    let (mut best_rate, mut flat) = (0.0, 0);
    for size in warm_up_sizes(settings.max_rows) {
        let mut best: Option<Duration> = None;
        for pass in 0..settings.passes.max(1) {
            let fresh = (0..size).map(|index| {
                let settings = RowSettings {
                    seed: pass as u64,
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
            let mut rows = fresh.collect::<Result<Vec<_>, _>>()?;
            let mut batch: Vec<&mut Row> = rows.iter_mut().collect();
            let begun = clock();
            model.pass(&mut batch).map_err(failed(size))?;
            let time = clock().saturating_duration_since(begun);
            best = Some(best.map_or(time, |best| best.min(time)));
        }
        let point = Point {
            rows: size,
            time: best.unwrap_or_default(),
        };
        flat = if point.rate() > best_rate { 0 } else { flat + 1 };
        best_rate = best_rate.max(point.rate());
        points.push(point);
        if point.time > settings.max_pass || flat >= FLAT_SIZES {
            break;
        }
    }
    Ok(PassCurve::new(points))
}
