"""What the page says, in Korean and English; the browser's language chooses."""

import re
from collections.abc import Mapping

WORDS = {
    "intro": (
        "# Dance video\nAn image of a person, and a dance for it: from a driving video or to a song.",
        "# 댄스 영상\n인물 사진 한 장과, 그 사람이 출 춤: 구동 영상을 따라 하거나 노래에 맞춥니다.",
    ),
    "picture": ("### 1. Image of the person", "### 1. 인물 사진"),
    "dance": ("### 2. Dance", "### 2. 춤"),
    "video_tab": ("Driving video", "구동 영상"),
    "song_tab": ("Song", "노래"),
    "song": ("Song to dance to", "춤출 노래"),
    "examples": ("Ready examples: click one", "준비된 예: 하나를 누르세요"),
    "no_own_video": (
        "Only the examples can be used here: {video}.",
        "예만 쓸 수 있습니다: {video}.",
    ),
    "no_own_song": ("Only the examples can be used here: {song}.", "예만 쓸 수 있습니다: {song}."),
    "steps": ("Steps", "스텝 수"),
    "steps_info": ("More is finer and slower", "많을수록 곱고 느립니다"),
    "scale": ("Guidance scale", "가이던스 강도"),
    "scale_info": ("1: without, twice as fast", "1: 쓰지 않음, 두 배 빠름"),
    "seed": ("Seed", "시드"),
    "seed_info": ("Another number, another result", "숫자가 다르면 결과도 다릅니다"),
    "seconds": ("Seconds", "길이(초)"),
    "seconds_info": ("Longer is slower", "길수록 오래 걸립니다"),
    "more": ("More settings", "더 많은 설정"),
    "start": ("Start, in seconds", "시작(초)"),
    "scheduler": ("Sampler", "샘플러"),
    "retarget": ("Fit the dance to the person's body", "춤을 인물의 체형에 맞추기"),
    "smooth": ("Take the trembling out of the poses", "포즈 떨림 줄이기"),
    "hear": ("Use the video's music as guidance, too", "영상의 음악도 가이던스로 쓰기"),
    "interval": ("Guide the middle noise levels only (faster)", "중간 노이즈 수준만 가이던스 (더 빠름)"),
    "grids": ("Windows of frames in two grids (fewer seams)", "프레임 창을 두 격자로 (이음매 감소)"),
    "noise": ("The same noise for all windows", "모든 창이 같은 노이즈로 시작"),
    "fit_trained": ("As trained", "학습할 때처럼"),
    "fit_crop": ("Crop", "자르기"),
    "fit_pad": ("Pad", "여백 채우기"),
    "fit": ("Where shapes differ", "화면 비율이 다를 때"),
    "weight_pose": ("Extra weight of the poses", "포즈 추가 강도"),
    "weight_music": ("Extra weight of the music", "음악 추가 강도"),
    "make": ("Make the video", "영상 만들기"),
    "stop": ("Stop", "중지"),
    "result": ("Result (generated)", "결과 (생성된 영상)"),
    "panel": ("Image, pose and result side by side", "사진, 포즈, 결과를 나란히"),
    "download": ("Download (marked as generated)", "내려받기 (생성물 표시 포함)"),
    "limits": (
        "Images: jpg, png, webp. Videos: mp4, mov, webm, mkv, avi. Songs: mp3, wav, flac, ogg, m4a. "
        "Up to {megabytes} MB per file. Files are removed when you leave. "
        "Use images of people who agreed to it.",
        "사진: jpg, png, webp. 영상: mp4, mov, webm, mkv, avi. 노래: mp3, wav, flac, ogg, m4a. "
        "파일당 {megabytes} MB까지. 페이지를 떠나면 파일은 지워집니다. 동의한 사람의 사진만 쓰세요.",
    ),
    "no_image": ("Choose an image of a person first.", "먼저 인물 사진을 고르세요."),
    "no_video": ("Choose a driving video, or one of the examples.", "구동 영상이나 예를 고르세요."),
    "no_song": ("Choose a song, or one of the examples.", "노래나 예를 고르세요."),
    "stopped": ("Stopped.", "중지했습니다."),
    "unexpected": (
        "Something unexpected went wrong; the terminal of app.py says what.",
        "예상하지 못한 오류입니다. app.py의 터미널에 내용이 있습니다.",
    ),
    "sampling": ("sampling", "영상을 그리는 중"),
    "writing": ("writing", "저장하는 중"),
    "finding the poses": ("finding the poses", "포즈를 찾는 중"),
    "preparing": ("preparing", "준비하는 중"),
    "step": ("{part}: {done} of {total}", "{part}: {done} / {total}"),
    "left": ("about {time} left", "약 {time} 남음"),
    "second": ("{number} s", "{number}초"),
    "minute": ("{number} min", "{number}분"),
    "silent": (
        "The video has no sound: its poses alone were used.",
        "영상에 소리가 없어 포즈만 썼습니다.",
    ),
    "made": ("Made in {time}: {summary}.", "{time} 걸림: {summary}."),
}
LANGUAGES = ("en", "ko")
PREFIX = "page_"


def translations(**values) -> dict[str, dict[str, str]]:
    """Return {language: {key: words}} for Gradio, of all words that the values are enough for.

    The keys have a prefix: Gradio has words of its own.
    """
    needs = {key: set(re.findall(r"{(\w+)}", english)) for key, (english, _) in WORDS.items()}
    fixed = [key for key, names in needs.items() if names <= values.keys()]
    return {
        language: {f"{PREFIX}{key}": say(language, key, **values) for key in fixed} for language in LANGUAGES
    }


def language_of(headers: Mapping[str, str]) -> str:
    """Return the language of a browser's request, the first of its list that the page speaks."""
    wanted = [word.strip()[:2].lower() for word in headers.get("accept-language", "").split(",")]
    return next((language for language in wanted if language in LANGUAGES), LANGUAGES[0])


def say(language: str, key: str, **values) -> str:
    """Return words of the page, with values in their places."""
    return WORDS[key][LANGUAGES.index(language)].format(**values)


def part(language: str, text: str) -> str:
    """Return what a job says that it does, in the language where the page knows it."""
    return say(language, text) if text in WORDS else text


def duration(language: str, seconds: float) -> str:
    """Return a duration in words."""
    number = max(1, round(seconds))
    if number < 100:
        return say(language, "second", number=number)
    return say(language, "minute", number=round(number / 60))
