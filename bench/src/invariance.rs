//! Whether a picture depends on those made beside it, and what becomes of the same request on another provider than the CPU.
//!
//! On the CPU a row's result is the same in any company, to the bit, and tests hold it to that. A device's library may choose another
//! way to sum for every shape of a product; then this says what that does to pictures.

use anyhow::Context as _;
use muse_engine::{Bundle, Provider, SessionOptions};

use crate::{
    arguments::{Arguments, Settings},
    bare::Bare,
    measure::say,
    report::{Section, Table, Verdict},
    stats::Series,
    workload::Order,
};

/// Pictures whose values differ by no more than this from each other's, in dB of PSNR, look the same.
const ALIKE_DB: f64 = 40.0;

/// The pictures of one side beside those of another.
struct Compared {
    pictures: usize,
    /// The same file, to the byte.
    same: usize,
    /// At least [`ALIKE_DB`], those included.
    alike: usize,
    /// Of the pictures that are not the same, the least; infinite where all are.
    worst: f64,
}

pub(crate) fn measure(
    arguments: &Arguments,
    settings: &Settings,
    bundle: &Bundle,
    pictures: usize,
) -> anyhow::Result<Section> {
    anyhow::ensure!(pictures > 0, "--pictures must be at least 1");
    let session = arguments.session()?;
    let provider = session.providers.first().copied().unwrap_or(Provider::Cpu);
    let mut bare = Bare::open(bundle, &session)?;
    let mut made = |batch: usize| {
        say(&format!("{pictures} pictures on {provider}, {batch} together"));
        make(&mut bare, pictures, batch)
    };
    let alone = made(1)?;
    let mut table = Table::new(&["", "the same file", "alike", "least PSNR, dB"]);
    let mut add = |what: String, compared: &Compared| {
        table.row([
            what,
            format!("{} of {}", compared.same, compared.pictures),
            format!("{} of {}", compared.alike, compared.pictures),
            format!("{:.1}", compared.worst),
        ]);
    };
    let mut verdicts = Vec::new();
    for batch in settings.batches {
        let compared = compare(&made(*batch)?, &alone)?;
        add(format!("{batch} together, against alone"), &compared);
        verdicts.push(Verdict::reported(
            format!("pictures that are the same alone and {batch} together"),
            &compared.share()?,
        ));
    }
    if provider != Provider::Cpu {
        let on_cpu = SessionOptions {
            providers: vec![Provider::Cpu],
            threads: arguments.threads,
            onnxruntime: session.onnxruntime.clone(),
            ..SessionOptions::default()
        };
        say(&format!("{pictures} pictures on the CPU"));
        let expected = make(&mut Bare::open(bundle, &on_cpu)?, pictures, 1)?;
        let compared = compare(&alone, &expected)?;
        add(format!("{provider} against the CPU, alone"), &compared);
        verdicts.push(Verdict::reported(
            format!("pictures that are the same on {provider} and the CPU"),
            &compared.share()?,
        ));
    }
    Ok(Section {
        name: "invariance".to_owned(),
        title: format!("What a picture depends on, on {provider}"),
        text: format!(
            "{pictures} pictures with prompts and seeds of their own, everything from the text on. The same file is the same to the byte; alike \
             is a PSNR of {ALIKE_DB} dB or more. Tokens are drawn, so a difference in the last bits of a logit mostly changes nothing, \
             and sometimes a token, from which another picture of the same prompt may grow."
        ),
        tables: vec![table],
        verdicts,
    })
}

/// The files of the first `pictures` orders, `batch` at a time.
fn make(bare: &mut Bare, pictures: usize, batch: usize) -> anyhow::Result<Vec<Vec<u8>>> {
    let orders: Vec<Order> = (0..pictures).map(Order::numbered).collect();
    let mut files = Vec::with_capacity(pictures);
    for together in orders.chunks(batch.max(1)) {
        files.extend(bare.make(together, usize::MAX)?.0);
    }
    Ok(files)
}

fn compare(found: &[Vec<u8>], expected: &[Vec<u8>]) -> anyhow::Result<Compared> {
    anyhow::ensure!(found.len() == expected.len(), "a picture is missing");
    let mut compared = Compared {
        pictures: found.len(),
        same: 0,
        alike: 0,
        worst: f64::INFINITY,
    };
    for (found, expected) in found.iter().zip(expected) {
        let decibels = if found == expected {
            compared.same += 1;
            f64::INFINITY
        } else {
            psnr(&pixels(found)?, &pixels(expected)?)
        };
        compared.alike += usize::from(decibels >= ALIKE_DB);
        compared.worst = compared.worst.min(decibels);
    }
    Ok(compared)
}

fn pixels(file: &[u8]) -> anyhow::Result<Vec<u8>> {
    let image = image::load_from_memory(file).context("a picture cannot be read")?;
    Ok(image.into_rgb8().into_raw())
}

/// Peak signal-to-noise ratio of 8-bit values, in dB; infinite where all are equal.
fn psnr(found: &[u8], expected: &[u8]) -> f64 {
    let squares: f64 = found
        .iter()
        .zip(expected)
        .map(|(found, expected)| f64::from(found.abs_diff(*expected)).powi(2))
        .sum();
    10.0 * (255.0_f64.powi(2) * expected.len() as f64 / squares).log10()
}

// === impl Compared ===

impl Compared {
    fn share(&self) -> anyhow::Result<Series> {
        let share = self.same as f64 / self.pictures as f64;
        Series::new([share]).context("no picture was made")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_pictures_have_no_noise_and_others_as_much_as_they_differ_by() {
        assert_eq!(psnr(&[7, 9], &[7, 9]), f64::INFINITY);
        // Every value off by one: 20·log10(255).
        assert!((psnr(&[1, 2, 3], &[2, 1, 4]) - 48.13).abs() < 0.01);
    }
}
