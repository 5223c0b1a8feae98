"""Install the web page that the ComfyUI found here asks for, beside what `tests/comfyui_checkout.py` installs."""

from comfyui_checkout import find_comfyui, install, requirement_name


def main() -> None:
    comfyui = find_comfyui()
    if comfyui is None:
        raise SystemExit("no ComfyUI found (COMFYUI_PATH, ~/comfy/ComfyUI): the browser tests need one")
    lines = (comfyui / "requirements.txt").read_text(encoding="utf-8").splitlines()
    install([line.strip() for line in lines if requirement_name(line) == "comfyui-frontend-package"])


if __name__ == "__main__":
    main()
