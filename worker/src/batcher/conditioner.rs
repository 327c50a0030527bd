//! Runs the `condition` graph for jobs. What every job has in common, the unconditional input where it depends on no prompt,
//! is conditioned once and kept.

use std::sync::Arc;

use muse_engine::{Conditioning, ConditioningInput, StageModel};

use super::job::Job;

/// See the module.
pub(super) struct Conditioner {
    /// Most inputs in a run.
    most: usize,
    common: Option<Arc<Conditioning>>,
}

impl Conditioner {
    /// Runs of at most `most` inputs.
    pub(super) fn new(most: usize) -> Self {
        Conditioner {
            most: most.max(1),
            common: None,
        }
    }

    /// The conditioning of every input of each of `jobs`, in order.
    ///
    /// # Errors
    /// Why the model failed on one of them.
    pub(super) fn condition<M: StageModel>(
        &mut self,
        model: &mut M,
        jobs: &[&Job],
    ) -> Result<Vec<Vec<Arc<Conditioning>>>, String> {
        if self.common.is_none()
            && let Some(common) = jobs.iter().find_map(|job| job.inputs().get(job.common_input()?))
        {
            self.common = self.run(model, vec![common.clone()])?.pop();
        }
        let own: Vec<ConditioningInput> = jobs
            .iter()
            .flat_map(|job| each(job))
            .filter(|(_, is_common)| !is_common)
            .map(|(input, _)| input.clone())
            .collect();
        let mut own = self.run(model, own)?.into_iter();
        let of_job = |job: &&Job| {
            each(job)
                .filter_map(|(_, is_common)| {
                    if is_common {
                        self.common.clone()
                    } else {
                        own.next()
                    }
                })
                .collect()
        };
        Ok(jobs.iter().map(of_job).collect())
    }

    fn run<M: StageModel>(
        &self,
        model: &mut M,
        inputs: Vec<ConditioningInput>,
    ) -> Result<Vec<Arc<Conditioning>>, String> {
        let mut all = Vec::with_capacity(inputs.len());
        for part in inputs.chunks(self.most) {
            let made = model.condition(part).map_err(|error| error.to_string())?;
            if made.len() != part.len() {
                return Err(format!("{} conditionings for {} inputs", made.len(), part.len()));
            }
            all.extend(made);
        }
        Ok(all)
    }
}

/// A job's inputs, and whether each is the one that all jobs have in common.
fn each(job: &Job) -> impl Iterator<Item = (&ConditioningInput, bool)> {
    let inputs = job.inputs().iter().enumerate();
    inputs.map(|(index, input)| (input, job.common_input() == Some(index)))
}
