# A public server of PersonaScope, for a Docker Space or any machine with docker:
#   docker build -t personascope . && docker run -p 8501:8501 personascope
FROM python:3.11-slim

# baked: the base model lies in the image; start: it is fetched when the server starts, for a smaller image.
ARG MODEL=baked

RUN useradd --create-home --uid 1000 user
USER user
ENV HOME=/home/user \
    HF_HOME=/home/user/.cache/huggingface \
    PATH=/home/user/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=2 \
    PERSONASCOPE_HOSTED=1 \
    PERSONASCOPE_MEMORY_GB=1
WORKDIR /home/user/app

COPY --chown=user requirements.lock constraints.txt ./
RUN python -m venv /home/user/venv
RUN pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu -c constraints.txt torch
RUN pip install --no-cache-dir --require-hashes -r requirements.lock

COPY --chown=user app.py serve.py LICENSE ./
COPY --chown=user .streamlit .streamlit
COPY --chown=user backend backend
COPY --chown=user pages pages
COPY --chown=user cached_results cached_results
RUN if [ "$MODEL" = baked ]; then python -m backend models fetch base; fi

EXPOSE 8501
HEALTHCHECK --start-period=300s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8501/_stcore/health', timeout=5)"]
CMD ["sh", "-c", "python -m backend models fetch base || echo 'Serving stored answers only.'; exec python serve.py 8501 --address 0.0.0.0 --expose"]
