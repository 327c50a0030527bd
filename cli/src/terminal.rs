//! Pictures in a terminal: kitty's and iTerm2's protocols, and coloured blocks for the rest.

use std::{io::Cursor, io::IsTerminal as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use image::{ImageFormat, ImageReader, Limits, imageops::FilterType};

use crate::{arguments::Show, failure::Failure, output};

/// A way to show a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Kitty,
    Iterm,
    Blocks,
}

/// Characters of a chunk in kitty's protocol.
const KITTY_CHUNK: usize = 4096;
/// Columns of a picture made of blocks; a row of text shows two rows of pixels.
const BLOCK_COLUMNS: u32 = 64;
/// A picture to be shown is at most so wide and high.
const LARGEST_SIDE: u32 = 16_384;

/// Shows an encoded picture on stdout, if it is wanted and can be.
pub(crate) fn show(data: &[u8], wanted: Show) -> Result<(), Failure> {
    let environment = |name: &str| std::env::var(name).ok();
    let Some(protocol) = choose(wanted, std::io::stdout().is_terminal(), environment) else {
        return Ok(());
    };
    let text = match protocol {
        Protocol::Kitty => kitty(&as_png(data)?),
        Protocol::Iterm => iterm(data),
        Protocol::Blocks => blocks(data)?,
    };
    output::line(&text)
}

fn choose(wanted: Show, is_terminal: bool, environment: impl Fn(&str) -> Option<String>) -> Option<Protocol> {
    let name = |variable| environment(variable).unwrap_or_default();
    let (term, program) = (name("TERM"), name("TERM_PROGRAM"));
    let speaks_kitty = environment("KITTY_WINDOW_ID").is_some()
        || term.contains("kitty")
        || term.contains("ghostty")
        || program == "ghostty";
    let speaks_iterm = matches!(program.as_str(), "iTerm.app" | "WezTerm");
    // Between us and the terminal, tmux and screen swallow both.
    let is_multiplexed = environment("TMUX").is_some() || term.starts_with("screen");
    let graphics = match (speaks_kitty, speaks_iterm) {
        _ if is_multiplexed => None,
        (true, _) => Some(Protocol::Kitty),
        (_, true) => Some(Protocol::Iterm),
        _ => None,
    };
    match wanted {
        Show::Never => None,
        Show::Auto => graphics.filter(|_| is_terminal),
        Show::Always => graphics.or(Some(Protocol::Blocks)),
    }
}

fn kitty(png: &[u8]) -> String {
    let encoded = STANDARD.encode(png);
    let mut text = String::with_capacity(encoded.len() + encoded.len() / KITTY_CHUNK * 16 + 32);
    let mut rest = encoded.as_str();
    let mut control = "a=T,f=100,";
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(rest.len().min(KITTY_CHUNK));
        let more = u8::from(!after.is_empty());
        text.push_str(&format!("\x1b_G{control}m={more};{chunk}\x1b\\"));
        (rest, control) = (after, "");
    }
    text
}

fn iterm(data: &[u8]) -> String {
    format!(
        "\x1b]1337;File=inline=1;size={}:{}\x07",
        data.len(),
        STANDARD.encode(data)
    )
}

/// Each character shows two pixels: the upper in its own colour, the lower in its background's.
fn blocks(data: &[u8]) -> Result<String, Failure> {
    let picture = decode(data)?;
    let columns = picture.width().clamp(1, BLOCK_COLUMNS);
    let rows = (picture.height() * columns / picture.width().max(1)).max(2);
    let small = picture
        .resize_exact(columns, rows / 2 * 2, FilterType::Triangle)
        .to_rgb8();
    let mut text = String::new();
    for row in (0..small.height()).step_by(2) {
        for column in 0..small.width() {
            let [red, green, blue] = small.get_pixel(column, row).0;
            let [below_red, below_green, below_blue] = small.get_pixel(column, row + 1).0;
            text.push_str(&format!(
                "\x1b[38;2;{red};{green};{blue}m\x1b[48;2;{below_red};{below_green};{below_blue}m▀"
            ));
        }
        text.push_str("\x1b[0m\n");
    }
    text.truncate(text.trim_end_matches('\n').len());
    Ok(text)
}

/// The only encoding that kitty takes.
fn as_png(data: &[u8]) -> Result<Vec<u8>, Failure> {
    if image::guess_format(data).ok() == Some(ImageFormat::Png) {
        return Ok(data.to_vec());
    }
    let mut png = Cursor::new(Vec::new());
    decode(data)?
        .write_to(&mut png, ImageFormat::Png)
        .map_err(|error| cannot_show(&error))?;
    Ok(png.into_inner())
}

fn decode(data: &[u8]) -> Result<image::DynamicImage, Failure> {
    let mut reader = ImageReader::new(Cursor::new(data))
        .with_guessed_format()
        .map_err(|error| cannot_show(&error))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(LARGEST_SIDE);
    limits.max_image_height = Some(LARGEST_SIDE);
    reader.limits(limits);
    reader.decode().map_err(|error| cannot_show(&error))
}

fn cannot_show(error: &dyn std::error::Error) -> Failure {
    Failure::Failed(format!("the picture cannot be shown: {error}"))
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;

    fn jpeg() -> Vec<u8> {
        let picture = RgbImage::from_pixel(128, 96, Rgb([200, 30, 30]));
        let mut data = Cursor::new(Vec::new());
        picture.write_to(&mut data, ImageFormat::Jpeg).unwrap();
        data.into_inner()
    }

    #[test]
    fn a_terminal_gets_what_it_understands() {
        let with = |pairs: &'static [(&'static str, &'static str)]| {
            move |name: &str| {
                pairs
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).to_owned())
            }
        };
        let kitty = || with(&[("TERM", "xterm-kitty")]);
        assert_eq!(choose(Show::Auto, true, kitty()), Some(Protocol::Kitty));
        assert_eq!(choose(Show::Auto, false, kitty()), None, "a pipe gets no picture");
        assert_eq!(choose(Show::Never, true, kitty()), None);
        assert_eq!(
            choose(Show::Auto, true, with(&[("TERM_PROGRAM", "iTerm.app")])),
            Some(Protocol::Iterm)
        );
        assert_eq!(choose(Show::Auto, true, with(&[("TERM", "xterm")])), None);
        assert_eq!(choose(Show::Always, false, with(&[])), Some(Protocol::Blocks));
        assert_eq!(
            choose(
                Show::Always,
                true,
                with(&[("TERM", "xterm-kitty"), ("TMUX", "x")])
            ),
            Some(Protocol::Blocks)
        );
    }

    #[test]
    fn blocks_keep_the_proportions() {
        let text = blocks(&jpeg()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 24, "64 columns by 48 pixels, two to a line");
        assert!(lines.iter().all(|line| line.matches('▀').count() == 64));
    }

    #[test]
    fn kitty_gets_a_png_in_chunks_of_which_only_the_last_says_no_more() {
        let png = as_png(&jpeg()).unwrap();
        assert_eq!(image::guess_format(&png).unwrap(), ImageFormat::Png);
        let text = kitty(&[7; 7000]);
        assert_eq!(
            (
                text.matches("\x1b_G").count(),
                text.matches("m=1").count(),
                text.matches("m=0").count()
            ),
            (3, 2, 1)
        );
        assert!(text.starts_with("\x1b_Ga=T,f=100,m=1;"));
    }

    #[test]
    fn what_is_no_picture_is_an_error() {
        assert!(
            blocks(b"not a picture")
                .unwrap_err()
                .to_string()
                .contains("cannot be shown")
        );
    }
}
