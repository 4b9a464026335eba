# docker build -t logocentric . && docker run --rm -v "$PWD:/sounds" logocentric describe /sounds/song.mp3
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends ffmpeg && rm -rf /var/lib/apt/lists/*
WORKDIR /logocentric
COPY pyproject.toml requirements.lock README.md LICENSE THIRD_PARTY.md ./
COPY logocentric logocentric
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c requirements.lock .
ENTRYPOINT ["logocentric"]
CMD ["--help"]
