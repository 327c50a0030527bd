//! Checkpoints on the wire.

use muse_engine::{RowState, Stage, StageSpec};
use muse_proto::internal::v1::{self as wire, Checkpoint};

use crate::{grid, settings};

/// Why a checkpoint is none of this stage's. Whether its grids fit the settings is checked where rows are built of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointFault {
    /// It is another stage's.
    #[error("the checkpoint is of stage {found}, not {wanted}")]
    Stage {
        /// As told.
        found: &'static str,
        /// This shard's.
        wanted: Stage,
    },
    /// It has another number of rows than the job has pictures.
    #[error("the checkpoint has {found} rows for {wanted} pictures")]
    Rows {
        /// In the checkpoint.
        found: usize,
        /// In the request.
        wanted: usize,
    },
    /// A row's tokens are no grid of this stage.
    #[error("row {row} of the checkpoint: {fault}")]
    Grid {
        /// Which row.
        row: usize,
        /// What is wrong.
        fault: String,
    },
}

/// Rows between two steps, as a checkpoint.
pub fn to_wire(stage: Stage, rows: &[RowState]) -> Checkpoint {
    let rows = rows.iter().map(|row| wire::RowState {
        tokens: Some(grid::row_to_tensor(&row.tokens)),
        step: row.step,
        of: row.of,
        initially_masked: row.initially_masked,
        initially_known: row.initially_known.clone(),
    });
    Checkpoint {
        stage: settings::stage_to_wire(stage) as i32,
        rows: rows.collect(),
    }
}

/// The rows of a checkpoint for `pictures` pictures of `spec`'s stage.
///
/// # Errors
/// When it is of another stage or size.
pub fn from_wire(
    checkpoint: &Checkpoint,
    spec: &StageSpec,
    pictures: usize,
) -> Result<Vec<RowState>, CheckpointFault> {
    if checkpoint.stage() != settings::stage_to_wire(spec.stage) {
        return Err(CheckpointFault::Stage {
            found: checkpoint.stage().as_str_name(),
            wanted: spec.stage,
        });
    }
    if checkpoint.rows.len() != pictures {
        return Err(CheckpointFault::Rows {
            found: checkpoint.rows.len(),
            wanted: pictures,
        });
    }
    let rows = checkpoint.rows.iter().enumerate().map(|(row, state)| {
        let fault = |fault: String| CheckpointFault::Grid { row, fault };
        let tokens = state
            .tokens
            .as_ref()
            .ok_or_else(|| fault("has no tokens".to_owned()))?;
        Ok(RowState {
            tokens: grid::row_from_tensor(tokens, spec.positions())
                .map_err(|error| fault(error.to_string()))?,
            step: state.step,
            of: state.of,
            initially_masked: state.initially_masked,
            initially_known: state.initially_known.clone(),
        })
    });
    rows.collect()
}
